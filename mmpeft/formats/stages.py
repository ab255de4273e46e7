"""Adapters that were merged into a base before the next one was trained on it: it means nothing without them.

A model remembers them in a plain attribute, an adapter that is saved on it in ``mmpeft.json``; loading compares both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from mmpeft.anatomies.headed import backbone_of
from mmpeft.formats.storage import weights_in
from mmpeft.injection.pipelines import modules_of
from mmpeft.settings import Settings, shortened

MERGED = "mmpeft_stages"
"""The attribute of a module that holds its stages."""


class Stage(Settings):
    """An adapter on disk that is part of a base's weights."""

    path: Annotated[str, Field(max_length=4096)]
    """Its directory, as it was given."""
    sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
    """Of the file of its tensors; empty if it was gone, which is never equal to another one."""
    weight: float | tuple[tuple[str, float], ...] = 1.0
    """How much of it was merged: a number, or numbers by pattern of places."""

    @classmethod
    def of(cls, directory: str | Path, weight: float | Mapping[str, float] = 1.0) -> Stage:
        """Describe the adapter in a directory."""
        try:
            with weights_in(Path(directory)).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError):
            digest = ""
        by_place = tuple(weight.items()) if isinstance(weight, Mapping) else weight
        return cls(path=str(directory), sha256=digest, weight=by_place)

    @property
    def weights(self) -> float | dict[str, float]:
        """The weight as ``activate`` takes it."""
        return dict(self.weight) if isinstance(self.weight, tuple) else self.weight

    def same(self, other: Stage) -> bool:
        """Whether both are the same change of a base, wherever it lies."""
        return bool(self.sha256) and (self.sha256, self.weight) == (other.sha256, other.weight)

    def __str__(self) -> str:
        share = "" if self.weight == 1 else f", weight {self.weight}"
        return f"{shortened(self.path)} ({self.sha256[:8] or 'gone'}{share})"


def stages_of(modules: Mapping[str, nn.Module]) -> tuple[Stage, ...]:
    """Return what was merged into modules, in order."""
    return tuple(dict.fromkeys(stage for module in modules.values() for stage in _stages(module)))


def mark_merged(model: nn.Module | Mapping[str, nn.Module] | Any, *directories: str | Path) -> None:
    """Say that adapters are part of a model's weights: of one that was saved after they had been merged into it."""
    for module in modules_of(model).values():
        remember(module, map(Stage.of, directories))


def remember(module: nn.Module, stages: Iterable[Stage]) -> None:
    """Add to what was merged into a module."""
    setattr(backbone_of(module), MERGED, (*_stages(module), *stages))


def check_stages(directory: Path, needed: tuple[Stage, ...], modules: Mapping[str, nn.Module]) -> None:
    """Raise a ValueError if an adapter was made on a base with others merged in, and these modules are another one."""
    present = stages_of(modules)
    equal = [one.same(other) for one, other in zip(needed, present, strict=False)]
    if not needed or (len(needed) == len(present) and all(equal)):
        return
    first = needed[equal.index(False) if False in equal else min(len(equal), len(needed) - 1)].path
    raise ValueError(
        f"{directory} was made on a base with {_listed(needed)} merged in, and this model has "
        f"{_listed(present)}: mmpeft.load(model, {first!r}).merge_and_unload() merges one; of a "
        f"model that was saved with it merged in, mmpeft.formats.stages.mark_merged(model, {first!r}) says so"
    )


def _stages(module: nn.Module) -> tuple[Stage, ...]:
    stages: tuple[Stage, ...] = getattr(backbone_of(module), MERGED, ())
    return stages


def _listed(stages: tuple[Stage, ...]) -> str:
    more = f" and {len(stages) - 5} more" if len(stages) > 5 else ""
    return ", ".join(map(str, stages[:5])) + more if stages else "none"
