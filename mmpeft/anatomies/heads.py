"""Models of a library with a head of ours around them: the backbone's own anatomy, and the head's sites."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from mmpeft.heads.base import Headed
from mmpeft.injection.anatomy import Anatomy, Tower, anatomy, reader


@reader
def read(model: nn.Module) -> Anatomy | None:
    """Return the anatomy of a headed model."""
    if not isinstance(model, Headed):
        return None
    inner = anatomy(model.backbone)
    towers = tuple(replace(tower, missing=_without_head(tower)) for tower in inner.towers)
    return model.complete(replace(inner, towers=(*towers, Tower("task", 0, (), model.head_sites()))))


def _without_head(tower: Tower) -> dict[str, str]:
    return {name: reason for name, reason in tower.missing.items() if name != "head"}
