"""diffusers' ``pytorch_lora_weights.safetensors``: LoRA and DoRA of a pipeline's parts, configured as by HF peft."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmpeft.formats.any_file import find_file, read_metadata, read_values, write_tensors
from mmpeft.formats.diffusion.deltas import Delta, adapter_of, deltas_of, layers, read_deltas
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hf_peft.peft_config import LoRAConfig, silent
from mmpeft.formats.hosted import Hosted, Model, Opened
from mmpeft.formats.storage import new_directory, parsed_object, validated
from mmpeft.formats.tensor_file import refuse
from mmpeft.settings import Settings

FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
METADATA = "lora_adapter_metadata"
ROLES = ("unet", "transformer", "text_encoder", "text_encoder_2")
OLD = {
    **{name: name for name in ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "add_q_proj", "to_add_out")},
    "to_out.0": "to_out",
    **{f"{letter}_proj": f"to_{letter}" for letter in "qkv"},
    "out_proj": "to_out",
}
"""What attention processors of diffusers up to 0.20 called their layers, text encoders' too."""


def read(source: Path, model: Model, options: Settings) -> Imported:
    """Return the deltas, scaled as the metadata or the alphas in the file say, else by 1."""
    path = find_file(source, FILES)
    values = read_values(path)
    names = {name: address for address in layers(model, *ROLES) for name in _names(*address)}
    if not any(key.startswith(ROLES) for key in values) and len(model.modules) == 1:
        values = {f"{next(iter(model.modules))}.{key}": value for key, value in values.items()}
    deltas = read_deltas(path, model, values, names)
    content = parsed_object(f"{path}: {METADATA}", read_metadata(path).get(METADATA, "{}"))
    if content:
        return adapter_of(model, _configured(path, deltas, content), [])
    alone = any(key.endswith(".alpha") for key in values)
    return adapter_of(model, deltas, [] if alone else ["alpha is not in the file: the rank, as diffusers takes it"])


def write(opened: Opened, dest: Path) -> None:
    """Write a directory with one file, which a pipeline's ``load_lora_weights`` reads."""
    deltas, configs = deltas_of(opened, FORMAT.name)
    tensors: dict[str, Tensor] = {}
    for delta in deltas:
        name = ".".join(delta.address)
        tensors |= {f"{name}.lora_A.weight": delta.a, f"{name}.lora_B.weight": delta.b}
        if delta.magnitude is not None:
            ends = ".weight" if delta.address[0].startswith("text_encoder") else ""  # transformers' loader and peft's
            magnitude = delta.magnitude if delta.a.ndim == 2 else delta.magnitude[None, :, None, None]
            tensors[f"{name}.lora_magnitude_vector{ends}"] = magnitude
    dumped = {role: config.model_dump(mode="json") for role, config in configs.items()}
    content = {f"{role}.{key}": value for role, config in dumped.items() for key, value in config.items()}
    with new_directory(dest) as partial:
        write_tensors(partial / FILES[0], tensors, **{METADATA: json.dumps(content, indent=2, sort_keys=True)})


def _names(role: str, path: str) -> Iterator[str]:
    """Yield the names that a layer has in files of all times; text encoders had a module ``text_model`` once."""
    paths = [path]
    if role.startswith("text_encoder"):
        bare = path.removeprefix("text_model.")
        paths = [bare, f"text_model.{bare}"]
    for spelling in paths:
        yield f"{role}.{spelling}"
        for new, old in OLD.items():
            if spelling.endswith(f".{new}"):
                parent = spelling.removesuffix(f".{new}")
                yield f"{role}.{parent}.processor.{old}"
                yield f"{role}.{parent}.{old}"


def _configured(path: Path, deltas: list[Delta], content: dict[str, Any]) -> list[Delta]:
    """Return deltas with the scales of the metadata; a rank that is another there is a ValueError."""
    roles = {delta.address[0] for delta in deltas}
    configs, problems, configured = {}, [], []
    for role in roles:
        options = {k.removeprefix(f"{role}."): v for k, v in content.items() if k.startswith(f"{role}.")}
        options = options or {k: v for k, v in content.items() if k.partition(".")[0] not in ROLES}
        known = {k: v for k, v in options.items() if k in LoRAConfig.model_fields or not silent(k, v)}
        configs[role] = validated(f"{path}: {METADATA} of {role}", known, LoRAConfig)
    for delta in deltas:
        config, layer = configs[delta.address[0]], delta.address[1]
        if config.rank(layer) != len(delta.a):
            problems.append(f"{layer}: rank {len(delta.a)}, and its metadata says {config.rank(layer)}")
        configured.append(replace(delta, alpha=config.alpha(layer), root=config.use_rslora))
    refuse(path, problems)
    return configured


FORMAT = Hosted("diffusers_lora", r"^(unet|text_encoder|transformer)\..*lora", read, Settings, write)
convert, export = FORMAT.convert, FORMAT.export
