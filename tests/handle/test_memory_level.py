"""`use_memory` on every library and method: the same numbers, less kept, and the model as it was afterwards."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tiny_models import MODELS
from torch import Tensor, nn

import mmpeft
from mmpeft.handle.report import saved_bytes
from mmpeft.kernels.backends import MemoryLevel

LEVELS: tuple[MemoryLevel, ...] = ("lean", "leanest")


class Run(nn.Module):
    """A model with the way to run it, as one module."""

    def __init__(self, model: nn.Module, case: Any) -> None:
        super().__init__()
        self.model, self.case = model, case

    def forward(self, batch: Any) -> Tensor:
        torch.manual_seed(5)
        return self.case.run(self.model, batch)


def step(model: nn.Module, case: Any, adapters: Any) -> tuple[Tensor, list[Tensor | None]]:
    for parameter in adapters.parameters():
        parameter.grad = None
    y = Run(model, case)(case.batch())
    y.sin().sum().backward()
    return y.detach(), [None if p.grad is None else p.grad.clone() for p in adapters.parameters()]


def same(one: tuple[Tensor, list[Tensor | None]], other: tuple[Tensor, list[Tensor | None]]) -> bool:
    pairs = [(one[0], other[0]), *zip(one[1], other[1], strict=True)]
    return all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_every_library(make_case: Any, name: str) -> None:
    case = make_case("lora", name)
    model = case.build().train()
    adapters = case.adapt(model, seed=1, targets="all")
    expected, sizes = step(model, case, adapters), [saved_bytes(Run(model, case), case.batch())]
    for level in LEVELS:
        with mmpeft.use_memory(model, level):
            assert same(step(model, case, adapters), expected)
            sizes.append(saved_bytes(Run(model, case), case.batch()))
    assert sizes[0] > sizes[1] > sizes[2] or name in ("mlp", "mixtral", "convnext")
    assert sizes[0] >= sizes[1] >= sizes[2]


def test_every_method(home: Any) -> None:
    model = home.build().train()
    adapters = home.adapt(model, seed=1)
    expected = step(model, home, adapters)
    with mmpeft.use_memory(model, "leanest"):
        assert same(step(model, home, adapters), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_gradient_checkpointing_comes_first(make_case: Any, level: MemoryLevel) -> None:
    case = make_case("lora", "llama")
    model = case.build().train()
    adapters = case.adapt(model, seed=1, targets="all")
    model.gradient_checkpointing_enable()
    expected, size = step(model, case, adapters), saved_bytes(Run(model, case), case.batch())
    mmpeft.use_memory(model, level)
    assert same(step(model, case, adapters), expected)
    assert saved_bytes(Run(model, case), case.batch()) <= 1.05 * size  # what is around the blocks


def test_one_graph_under_the_compiler(make_case: Any) -> None:
    case = make_case("lora", "vit")
    model = case.build().train()
    adapters = case.adapt(model, seed=1)
    expected = step(model, case, adapters)
    mmpeft.use_memory(model, "leanest")
    torch.compile(model, fullgraph=True, backend="aot_eager")(case.batch()).sin().sum().backward()
    for parameter, gradient in zip(adapters.parameters(), expected[1], strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_the_model_is_as_it_was(make_case: Any) -> None:
    model = make_case("lora", "vit").build()
    classes = [type(module) for module in model.modules()]
    with mmpeft.use_memory(model, "lean"):
        assert [type(module) for module in model.modules()] != classes
        with mmpeft.use_memory(model, "leanest"):
            pass
        assert model.blocks[0]._graft.now().level == "lean"
    assert [type(module) for module in model.modules()] == classes


def test_an_adapter_comes_and_goes(make_case: Any) -> None:
    case = make_case("lora", "vit")
    model = case.build()
    mmpeft.use_memory(model, "lean")
    adapters = case.adapt(model)
    adapters.remove()
    assert model.blocks[0]._graft.now().level == "lean"


def test_copies_have_the_level(make_case: Any) -> None:
    case = make_case("lora", "vit")
    model = case.build().train()
    case.adapt(model, seed=1, targets="all")
    before = saved_bytes(model, case.batch())
    mmpeft.use_memory(model, "leanest")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert saved_bytes(twin, case.batch()) == saved_bytes(model, case.batch()) < before


def test_an_unknown_level_is_named(make_case: Any) -> None:
    model = make_case("lora", "vit").build()
    with pytest.raises(ValueError, match=r"memory: 'leaner' is no level .did you mean 'lean'"):
        mmpeft.use_memory(model, "leaner")
