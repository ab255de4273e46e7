"""New words of text encoders: ``learned_embeds`` of diffusers, embeddings of AUTOMATIC1111 and kohya, also of SDXL."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpeft.edits import NewWords
from mmpeft.formats.any_file import find_file, read_values, write_tensors
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hosted import Hosted, Model, Opened
from mmpeft.formats.pickled import Array
from mmpeft.formats.storage import new_directory
from mmpeft.formats.tensor_file import described, refusal, refuse
from mmpeft.formats.torch_file import read_torch
from mmpeft.injection.planning import sketch
from mmpeft.methods import Method, TextualInversion
from mmpeft.settings import Settings

FILES = ("learned_embeds.safetensors", "learned_embeds.bin")
ENCODERS = ("text_encoder", "text_encoder_2")
LARGE = dict(zip(ENCODERS, ("clip_l", "clip_g"), strict=True))
"""Keys of SDXL's two text encoders in one file."""
Words = dict[str, dict[str, Tensor]]
"""Vectors (vectors, width) by text encoder and word."""


class Options(Settings):
    """What the file does not hold, or holds otherwise than wanted."""

    word: str | None = None
    """the word, where the file has one: null takes the file's own, or else the file's name"""


def read(source: Path, model: Model, options: Options) -> Imported:
    """Return the words, for the text encoder of their width, or for both of SDXL."""
    path = find_file(source, FILES)
    words = read_words(path, model, options.word)
    methods, tensors = adapter_of_words(path, model, words)
    return Imported(methods, tensors, [f"the word is {word}" for word in words[next(iter(words))]], facts=())


def write(opened: Opened, dest: Path) -> None:
    """Write ``learned_embeds.safetensors``, or a file per word where there are several."""
    opened.places(FORMAT.name, NewWords)
    with new_directory(dest) as partial:
        write_words(opened, partial, FILES[0])


def read_words(path: Path, model: Model, word: str | None = None) -> Words:
    """Return the words of one file."""
    content = _content(path)
    if set(content) == set(LARGE.values()):
        return {role: {word or path.stem: vectors_of(path, content[key])} for role, key in LARGE.items()}
    if "string_to_param" in content:
        named = content.get("name")
        content = {named if isinstance(named, str) and named else path.stem: _only(path, content["string_to_param"])}
    elif set(content) == {"emb_params"}:
        content = {path.stem: content["emb_params"]}
    if word is not None and len(content) > 1:
        raise ValueError(f"word: {word!r} for a file of {len(content)} words: {', '.join(content)}")
    words = {word or key: vectors_of(path, value) for key, value in content.items()}
    widths = {value.shape[1] for value in words.values()}
    fitting = [role for role in ENCODERS if role in model.modules and {_width(model.modules[role])} == widths]
    if len(fitting) != 1:
        known = [f"{role} {_width(model.modules[role])}" for role in ENCODERS if role in model.modules]
        raise refusal(path, [f"vectors of {sorted(widths)} for one text encoder, and the model has {', '.join(known)}"])
    return {fitting[0]: words}


def adapter_of_words(path: Path, model: Model, words: Words) -> tuple[list[Method], dict[str, Tensor]]:
    """Return the method of new words, with the ids that the model's tokenizer gives them, and its tensors."""
    counts = {len(value) for by_word in words.values() for value in by_word.values()}
    if len(counts) != 1:
        refuse(path, [f"words of {sorted(counts)} vectors: one adapter has as many for each word; import them singly"])
    present = [role for role in ENCODERS if role in model.modules]
    missing = [role for role in words if role not in present]
    refuse(path, [f"it has words for {role}, and the model has {', '.join(model.modules)}" for role in missing])
    towers: Any = "text" if list(words) == present else tuple(model.towers(role) for role in words)
    method = TextualInversion(words=tuple(next(iter(words.values()))), vectors=counts.pop(), towers=towers)
    planned = sketch(model.anatomies, [method])
    tensors = {}
    for role, by_word in words.items():
        part = planned[model.labels[role]]
        ((key, expected),) = part.state_dict().items()
        vectors = torch.cat(list(by_word.values()))
        if vectors.shape != expected.shape:
            refuse(path, [f"{role}: vectors {tuple(vectors.shape)}, the model needs {tuple(expected.shape)}"])
        tensors[model.key(role, key)] = vectors.contiguous()
    return planned[model.labels[next(iter(words))]].methods, tensors


def words_of(opened: Opened) -> Words:
    """Return the words of an adapter, if it has any."""
    words_by_encoder: Words = {}
    for role, part in opened.parts.items():
        vectors = [opened.tensors[role][f"{key}.vectors"] for _, edit, key in part.places if isinstance(edit, NewWords)]
        methods = [method for method in part.methods if isinstance(method, TextualInversion)]
        if len(methods) > 1:
            raise ValueError(f"{opened.directory}: {len(methods)} sets of words: a file holds those of one")
        for value in vectors:
            words_by_encoder[role] = dict(zip(methods[0].words, value.split(methods[0].vectors), strict=True))
    return words_by_encoder


def write_words(opened: Opened, directory: Path, alone: str | None = None) -> None:
    """Write a file for each word, named like it; one word gets the name ``alone`` if that is given."""
    words_by_encoder = words_of(opened)
    words = list(next(iter(words_by_encoder.values()), {}))
    for word in words:
        if not word.strip(". ") or set(word) & set("/\\\0"):
            raise ValueError(f"words: {word!r} can't be the name of a file")
        large = len(words_by_encoder) == 2
        tensors = {LARGE[role] if large else word: by_word[word] for role, by_word in words_by_encoder.items()}
        name = alone if alone and len(words) == 1 and not large else f"{word}.safetensors"
        write_tensors(directory / name, tensors)


def _content(path: Path) -> dict[str, Any]:
    """Return what a file holds at its top."""
    if path.suffix == ".safetensors":
        return read_values(path)
    content = read_torch(path)
    if not isinstance(content, dict):
        raise refusal(path, [f"{described(content)}, expected words and their vectors"])
    return content


def _only(path: Path, value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) != 1:
        raise refusal(path, ["string_to_param: expected the vectors of one word"])
    return next(iter(value.values()))


def vectors_of(path: Path, value: Any) -> Tensor:
    """Return the vectors (count, width) of a word in a file; anything else there is a ValueError."""
    value = value.value if isinstance(value, Array) else value
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.is_floating_point() or not value.numel():
        raise refusal(path, [f"{type(value).__name__}, where the vectors of a word are expected"])
    return value.reshape(-1, value.shape[-1])


def _width(encoder: Any) -> int:
    return int(encoder.get_input_embeddings().weight.shape[1])


FORMAT = Hosted("textual_inversion", r"^(string_to_param\.|emb_params$|clip_[lg]$|<[^>]+>$)", read, Options, write)
convert, export = FORMAT.convert, FORMAT.export
