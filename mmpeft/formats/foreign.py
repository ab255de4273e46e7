"""Checkpoints that papers' code wrote, turned into one of our directories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from mmpeft.formats.manifest import Base, Manifest
from mmpeft.formats.storage import MANIFEST, WEIGHTS, replaced_directory, validated, write_json
from mmpeft.formats.tensor_file import refusing
from mmpeft.injection.pipelines import modules_of
from mmpeft.methods import Method
from mmpeft.settings import Settings


@dataclass(frozen=True)
class Imported:
    """An adapter of a published checkpoint: methods, tensors by key inside the adapter, and what there is to say.

    ``facts`` are the options that had a say in it: all of them when None.
    """

    methods: list[Method]
    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)
    facts: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Foreign:
    """A format that papers' code wrote. ``sign`` is a regular expression for names that only its files have.

    ``options`` are what the file does not hold: each that is not given is assumed, and said.
    """

    name: str
    sign: str
    read: Callable[..., Imported]
    options: type[Settings] = Settings

    def convert(self, source: Path, dest: Path, options: Mapping[str, Any], base: Any = None) -> list[str]:
        """Write a published checkpoint as one of our directories; return what was assumed and what was left out.

        ``base`` is the model that the adapter is for: formats that name its parts need it.
        """
        chosen = validated(f"format {self.name}", dict(options), self.options)
        with refusing(source):
            imported = self._found(source, chosen, base)
        notes = [*_assumed(chosen, imported.facts), *imported.notes]
        manifest = Manifest(
            name="main",
            layout="native",
            methods=tuple(method.specification() for method in imported.methods),
            base={label: Base.of(module) for label, module in _touched(base, imported.tensors).items()},
            notes=(f"{source.name} as {self.name}", *notes),
        )
        with replaced_directory(dest) as partial:
            save_file(imported.tensors, partial / WEIGHTS, metadata={"format": "pt"})
            write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
        return notes

    def _found(self, source: Path, chosen: Any, base: Any) -> Imported:
        return self.read(source, chosen)


def _touched(base: Any, tensors: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """Return the modules of a model that these tensors are for."""
    modules = {} if base is None else modules_of(base)
    used = {label for label in modules if not label or any(key.startswith(f"{label}.") for key in tensors)}
    return {label: module for label, module in modules.items() if label in used}


def _assumed(options: Settings, facts: tuple[str, ...] | None) -> list[str]:
    fields, given = type(options).model_fields, options.model_fields_set
    unset = [name for name in (fields if facts is None else facts) if name not in given]
    return [f"{name}={getattr(options, name)} assumed: {fields[name].description}" for name in unset]
