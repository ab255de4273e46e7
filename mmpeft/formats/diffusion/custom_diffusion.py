"""Custom Diffusion: diffusers' directory of weights and words, and the authors' ``delta.bin``, compressed or not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.edits import NewWords, Unfreeze
from mmpeft.formats.any_file import find_file, read_values, write_tensors
from mmpeft.formats.diffusion.textual_inversion import (
    ENCODERS,
    Words,
    adapter_of_words,
    read_words,
    vectors_of,
    write_words,
)
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hosted import Hosted, Model, Opened, enter_all
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.storage import new_directory
from mmpeft.formats.tensor_file import described, refusal, refuse
from mmpeft.formats.torch_file import flat, read_torch
from mmpeft.methods import CustomDiffusion, TextualInversion
from mmpeft.settings import Settings

STEM = "pytorch_custom_diffusion_weights"
FILES = (f"{STEM}.safetensors", f"{STEM}.bin", "delta.bin")
OURS = re.compile(r"(?P<layer>.+)\.(?P<name>to_[qkv]|to_out\.0)\.custom_diffusion\.(?P<end>weight|bias)")


def read(source: Path, model: Model, options: Settings) -> Imported:
    """Return the projections, and the words where there are any."""
    path = find_file(source, FILES)
    role, _ = model.module("unet")
    values, words = _delta(path, model) if _is_delta(path) else (read_values(path), _beside(path, model))
    ledger = Ledger(path, values)
    ledger.shape(r".*attn2\.processor\.to_k_custom_diffusion\.weight", 2)
    method = CustomDiffusion(queries=r".*\.to_q_custom_diffusion\.weight" in ledger, towers=model.towers(role))
    enter_all(ledger, model, [method], _theirs)
    methods, tensors = adapter_of_words(path, model, words) if words else ([], {})
    return Imported(
        [method, *methods], ledger.close() | tensors, [f"words: {', '.join(o)}" for o in words.values()][:1]
    )


def write(opened: Opened, dest: Path) -> None:
    """Write the directory: the weights twice, for diffusers 0.42 itself can read only the ``.bin``, and the words."""
    opened.places(FORMAT.name, Unfreeze, NewWords)
    used = {method.name for part in opened.parts.values() for method in part.methods}
    others = used - {CustomDiffusion.name, TextualInversion.name}
    if others:
        raise ValueError(f"{opened.directory}: format custom_diffusion has no place for {', '.join(sorted(others))}")
    role, unet = opened.model.module("unet")
    tensors = {_theirs(key): value.detach().contiguous() for key, value in opened.tensors[role].items()}
    attentions = (f"{path}.processor" for path, _ in own_modules(unet) if path.endswith((".attn1", ".attn2")))
    empty: dict[str, Any] = {
        processor: {} for processor in attentions if not any(key.startswith(f"{processor}.") for key in tensors)
    }
    with new_directory(dest) as partial:
        write_tensors(partial / FILES[0], tensors)
        torch.save({**tensors, **empty}, partial / FILES[1])
        write_words(opened, partial)


def _theirs(key: str) -> str:
    match = OURS.fullmatch(key)
    assert match is not None
    name, _, index = match["name"].partition(".")
    return ".".join(filter(None, (match["layer"], "processor", f"{name}_custom_diffusion", index, match["end"])))


def _beside(path: Path, model: Model) -> Words:
    """Return the words of the files that lie beside the weights, one each."""
    words: Words = {}
    for file in sorted(path.parent.glob("*")):
        if file.suffix in (".safetensors", ".bin") and file.stem != STEM:
            for role, vectors in read_words(file, model).items():
                words.setdefault(role, {}).update(vectors)
    return words


def _is_delta(path: Path) -> bool:
    return path.suffix != ".safetensors" and STEM not in path.name


def _delta(path: Path, model: Model) -> tuple[dict[str, Any], Words]:
    """Return the weights of the authors' file by diffusers' names, and its words; ``u v`` is added to the base."""
    content = read_torch(path)
    if not isinstance(content, dict) or "unet" not in content:
        refuse(path, ["neither diffusers' weights nor the authors' delta.bin, which has 'unet'"])
    values, base = flat(content["unet"]), dict(model.module("unet")[1].named_parameters())
    refuse(path, ["it has the weights of a whole text encoder too"] if content.get("text_encoder") else [])
    weights: dict[str, Any] = {}
    for key in dict.fromkeys(key.removesuffix(".u").removesuffix(".v") for key in values):
        factors = {f"{key}.{letter}": values[f"{key}.{letter}"] for letter in "uv" if f"{key}.{letter}" in values}
        full = _product(path, key, factors, base[key]) if len(factors) == 2 and key in base else None
        named = factors if full is None else {key: base[key].detach() + full}
        for name, value in (named or {key: values[key]}).items():
            ours = re.sub(r"\.(weight|bias)$", r".custom_diffusion.\1", name)
            weights[_theirs(ours) if OURS.fullmatch(ours) else name] = value
    return weights, _modifiers(path, content.get("modifier_token") or {})


def _product(path: Path, key: str, factors: dict[str, Any], weight: Tensor) -> Tensor:
    """Return ``u v`` with u (out, rank) and v (rank, in) in the precision of a weight (out, in)."""
    u, v = factors.values()
    both = isinstance(u, Tensor) and isinstance(v, Tensor) and u.is_floating_point() and u.dtype == v.dtype
    if not both or u.ndim != 2 or v.ndim != 2 or (len(u), *v.shape) != (weight.shape[0], u.shape[1], weight.shape[1]):
        refuse(path, [f"{key}: its u and v are no factors of a weight {tuple(weight.shape)}"])
    return (u @ v).to(weight)


def _modifiers(path: Path, tokens: object) -> Words:
    """Return the words of the authors' file: a vector, or for SDXL one for each text encoder."""
    if not isinstance(tokens, dict):
        raise refusal(path, [f"modifier_token: {described(tokens)}, expected words and their vectors"])
    words: Words = {}
    for word, value in tokens.items():
        vectors = value if isinstance(value, list | tuple) else [value]
        for role, vector in zip(ENCODERS, vectors, strict=False):
            words.setdefault(role, {})[str(word)] = vectors_of(path, vector)
    return words


FORMAT = Hosted("custom_diffusion", r"custom_diffusion(\.0)?\.(weight|bias)$|^modifier_token\.", read, Settings, write)
convert, export = FORMAT.convert, FORMAT.export
