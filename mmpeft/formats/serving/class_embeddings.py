"""A tuned zero-shot classifier as plain weights: one vector per class, its name and the factor on the cosine.

Serving needs neither text tower nor tokenizer nor mmpeft: ``logits = scale * normalize(image features) @ weight.T``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from pydantic import FiniteFloat, Json
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmpeft.files import replaced_file
from mmpeft.formats.storage import validated
from mmpeft.formats.tensor_file import TensorFile, refuse
from mmpeft.settings import Settings

NAME = "class_embeddings"


@dataclass(frozen=True)
class ClassEmbeddings:
    """Normalised class embeddings ``weight`` (classes, width), the names of the classes and the factor ``scale``."""

    weight: Tensor
    classes: tuple[str, ...]
    scale: float

    def logits(self, features: Tensor) -> Tensor:
        """Return ``scale cos(f, w_c)`` (batch, classes) of image features f (batch, width), normalised here."""
        return self.scale * F.normalize(features, dim=-1) @ self.weight.to(features).T


class Said(Settings):
    """What the header of a file says."""

    classes: Json[tuple[str, ...]]
    scale: FiniteFloat


def save_class_embeddings(embeddings: ClassEmbeddings, path: Path) -> None:
    """Write one safetensors file; one that is there is replaced whole or not at all."""
    says = {"format": f"mmpeft.{NAME}", "classes": json.dumps(embeddings.classes), "scale": repr(embeddings.scale)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        save_file({NAME: embeddings.weight.contiguous().cpu()}, temporary, metadata=says)


def read_class_embeddings(path: Path) -> ClassEmbeddings:
    """Return what ``save_class_embeddings`` wrote; any other file is a ValueError."""
    file = TensorFile(path)
    with safe_open(path, "pt") as content:
        says = content.metadata() or {}
    if says.get("format") != f"mmpeft.{NAME}":
        refuse(path, [f"it says format {says.get('format')!r}, not 'mmpeft.{NAME}'"])
    said = validated(path, {key: says[key] for key in Said.model_fields if key in says}, Said)
    count, *width = file.shapes.get(NAME, (0,))
    if count != len(said.classes) or len(width) != 1:
        refuse(path, [f"{NAME}: {count} embeddings of {len(said.classes)} classes, each of {tuple(width)} numbers"])
    return ClassEmbeddings(file.read(allow_nan=False)[NAME], said.classes, said.scale)


def export(directory: Path, dest: Path, base: object = None) -> None:
    """Refuse: an adapter's directory alone has no classes."""
    raise ValueError(
        f"{directory}: class embeddings come from a whole classifier: mmpeft export RUN {dest} --format {NAME}, or "
        "mmpeft.formats.serving.class_embeddings.save_class_embeddings(embeddings_of(classifier)[0], path)"
    )
