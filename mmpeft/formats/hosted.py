"""Formats whose files name the parts of a model: they are read and written with the model at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmpeft.anatomies.anatomy import Anatomy
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.sites import Site
from mmpeft.edits import Edit
from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.native import read as read_native
from mmpeft.formats.saved_adapter import read_tensors
from mmpeft.injection.pipelines import modules_of
from mmpeft.injection.planning import anatomies_of, sketch
from mmpeft.injection.tree import Adapter
from mmpeft.methods import Method

ROLES = {"unet": "unet", "transformer": "transformer", "text": "text_encoder"}
"""What a single module is called in a pipeline, by its tower."""


class Model:
    """The model that an adapter is for, a module or a pipeline; its modules by their names in a pipeline of diffusers.

    A single module takes the name that it would have there.
    """

    def __init__(self, base: Any) -> None:
        self.by_label = modules_of(base)
        self.anatomies = anatomies_of(base)
        self.labels = {label or _role(self.anatomies[label]): label for label in self.by_label}
        self.modules = {role: self.by_label[label] for role, label in self.labels.items()}

    def module(self, *roles: str) -> tuple[str, Any]:
        """Return the first of these parts that the model has, with its name."""
        for role in roles:
            if role in self.modules:
                return role, self.modules[role]
        raise ValueError(f"base: {' or '.join(roles)} needed, and the model has {', '.join(self.modules)}")

    def key(self, role: str, key: str) -> str:
        """Return the name that a part's tensor has in an adapter of the whole model."""
        return f"{self.labels[role]}.{key}".lstrip(".")

    def towers(self, role: str) -> str:
        """Return the value of ``towers`` that limits a method to a part."""
        return self.labels[role] or "all"


def _role(anatomy: Anatomy) -> str:
    towers = [name for name in anatomy.tower_names() if name in ROLES]
    if len(towers) != 1:
        raise ValueError(
            f"base: {plain_class(anatomy.model).__name__} is neither a pipeline, nor a denoiser or text encoder of one"
        )
    return ROLES[towers[0]]


@dataclass(frozen=True)
class Opened:
    """One of our adapters: its parts (places without weights) and tensors by the names of a model's parts."""

    directory: Path
    model: Model
    parts: dict[str, Adapter]
    tensors: dict[str, dict[str, Tensor]]

    def places(self, format: str, *kinds: type[Edit]) -> dict[str, list[tuple[Site, Edit, str]]]:
        """Return the edits of each part that has any; one of another kind than these is a ValueError."""
        others = {e for part in self.parts.values() for _, e, _ in part.places if not isinstance(e, kinds)}
        if others:
            methods = sorted({method.name for part in self.parts.values() for method in part.methods})
            names = sorted({type(edit).__name__ for edit in others})
            raise ValueError(
                f"{self.directory}: format {format} has no place for {', '.join(names)} (of {', '.join(methods)})"
            )
        return {role: part.places for role, part in self.parts.items() if part.places}


def open_adapter(directory: Path, model: Model) -> Opened:
    """Read one of our directories for a model; one that doesn't fit it is a ValueError."""
    source = read_native(directory)
    notes = source.manifest.differences(model.by_label, model.anatomies) if source.manifest else []
    tensors = read_tensors(model.by_label, model.anatomies, source, notes)
    planned = sketch(model.anatomies, source.methods)
    parts = {role: planned[label] for role, label in model.labels.items()}
    by_role = {role: {key: tensors[model.key(role, key)] for key in part.state_dict()} for role, part in parts.items()}
    return Opened(directory, model, parts, by_role)


@dataclass(frozen=True)
class Hosted(Foreign):
    """A format that names the parts of a model; ``read`` takes the model too, ``write`` makes a file of an adapter."""

    read: Callable[..., Imported]
    write: Callable[[Opened, Path], None] | None = None

    def _found(self, source: Path, chosen: Any, base: Any) -> Imported:
        return self.read(source, self._model(base), chosen)

    def export(self, directory: Path, dest: Path, base: Any) -> None:
        """Write one of our directories in this format."""
        assert self.write is not None
        self.write(open_adapter(directory, self._model(base)), dest)

    def _model(self, base: Any) -> Model:
        if base is None:
            raise ValueError(f"base: format {self.name} names the parts of a model: give the model, or --base MODEL")
        return Model(base)


def enter_all(ledger: Ledger, model: Model, methods: list[Method], theirs: Callable[[str], str]) -> None:
    """Enter every tensor that methods have in a model, under what ``theirs`` makes of our name for it in its part."""
    for label, part in sketch(model.anatomies, methods).items():
        for key, value in part.state_dict().items():
            ledger.enter(f"{label}.{key}".lstrip("."), theirs(key), tuple(value.shape))
