from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from training_program import make_model

import mmpeft
from mmpeft.inspection.frozen_prefix_search import find_prefix
from mmpeft.training.prefix_cache.fingerprint import fingerprint


def of(change: Callable[[Any], object] = lambda model: None, rank: int = 1, *settings: str) -> str:
    model: Any = make_model()
    change(model)
    mmpeft.adapt(model, mmpeft.LoRA(rank=rank, layers="last:1"))
    batch = {"image": torch.randn(3, 3, 16, 16)}
    prefix = find_prefix(model, lambda own: model(own["image"]).sum(), batch)
    return fingerprint(model, prefix, *settings)


def add(path: str) -> Callable[[Any], object]:
    return lambda model: model.get_parameter(path).data.view(-1)[0].add_(1e-3)


SAME: dict[str, Callable[[], str]] = {
    "again": of,
    "adapter": lambda: of(rank=2),
    "behind": lambda: of(add("blocks.1.mlp.fc1.weight")),
    "head": lambda: of(add("head.bias")),
}
OTHER: dict[str, Callable[[], str]] = {
    "block": lambda: of(add("blocks.0.mlp.fc1.weight")),
    "root": lambda: of(add("pos_embed")),
    "attribute": lambda: of(lambda model: setattr(model.blocks[0].norm1, "eps", 1e-3)),
    "class": lambda: of(lambda model: setattr(model.blocks[0].mlp, "act", torch.nn.ReLU())),
    "settings": lambda: of(lambda model: None, 1, "bf16"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_the_prefix_does_not_depend_on(name: str) -> None:
    assert SAME[name]() == of()


@pytest.mark.parametrize("name", OTHER)
def test_what_it_depends_on(name: str) -> None:
    assert OTHER[name]() != of()
