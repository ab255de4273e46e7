"""``mmpeft.json``: what an adapter was made of, and for which model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn

from mmpeft import __version__
from mmpeft.anatomies.anatomy import Anatomy
from mmpeft.anatomies.headed import backbone_of
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.reading import anatomy
from mmpeft.formats.stages import Stage
from mmpeft.kernels.quantized import shape_of
from mmpeft.settings import Settings


class Base(Settings):
    """The model that an adapter was made for: its class, and its parameters but for the task head's."""

    model: str
    """The class of the module."""
    parameters: int
    """How many numbers its parameters hold."""
    fingerprint: str
    """SHA-256 of the parameters' names and shapes."""

    @classmethod
    def of(cls, module: nn.Module, known: Anatomy | None = None) -> Base:
        """Describe a module, whose anatomy may be ``known``; one without its adapters gives the same."""
        module = backbone_of(module)
        known = anatomy(module) if known is None else known
        heads = [site.host_path for tower in known.towers for site in tower.sites if site.name == "head"]
        left_out = ("mmpeft.", *(f"{head}." for head in heads))
        rest = {key: tuple(shape_of(p)) for key, p in module.named_parameters() if not key.startswith(left_out)}
        lines = "\n".join(f"{key} {shape}" for key, shape in sorted(rest.items()))
        return cls(
            model=plain_class(module).__name__,
            parameters=sum(torch.Size(shape).numel() for shape in rest.values()),
            fingerprint=hashlib.sha256(lines.encode()).hexdigest(),
        )

    def __str__(self) -> str:
        return f"{self.model} of {self.parameters:,} parameters, fingerprint {self.fingerprint[:8]}"


class Manifest(Settings):
    """The content of ``mmpeft.json``."""

    format: Literal[1] = 1
    """Version of this file."""
    mmpeft: str = __version__
    """Version of mmpeft that wrote it."""
    name: str
    """The adapter's name."""
    layout: Literal["native", "peft"]
    """Whether the tensors have mmpeft's keys and shapes or those of HF peft."""
    methods: tuple[dict[str, Any], ...]
    """Specifications of the methods."""
    packages: dict[str, str] = Field(default_factory=dict)
    """By method, name and version of the package that it comes from; methods of mmpeft are not there."""
    base: dict[str, Base]
    """The models, by their labels in a pipeline ("" for a single one); empty when converted from another format."""
    stages: Annotated[tuple[Stage, ...], Field(max_length=100)] = ()
    """Adapters that were merged into the base before this one was trained on it, in order."""
    notes: tuple[str, ...] = ()
    """Where an import came from, and what it assumed and left out."""

    @field_validator("name")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if not value.replace("_", "a").replace("-", "a").isalnum():
            raise ValueError("letters, digits, '-' and '_' only")
        return value

    def differences(self, modules: Mapping[str, nn.Module], anatomies: Mapping[str, Anatomy]) -> list[str]:
        """Say for each module that is not built like the one that the adapter was made for what it is."""
        present = {label: Base.of(base, anatomies[label]) for label, base in modules.items() if label in self.base}
        return [
            f"made for {self.base[label]}, and {f'{label!r}' if label else 'this'} is {base}"
            for label, base in present.items()
            if base != self.base[label]
        ]

    def warn(self, directory: Path, differences: list[str]) -> None:
        """Warn that an adapter which fits was made for another model."""
        for difference in differences:
            warnings.warn(f"{directory} fits, but was {difference}", stacklevel=4)
