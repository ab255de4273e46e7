"""No graph is built in front of the first edit, and none in a backbone that a side network only reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from tiny_models import MODELS
from torch import Tensor, nn

import mmpeft
from mmpeft.anatomies.anatomy import own_modules
from mmpeft.assembly.grafting import checkpoint_blocks
from mmpeft.inspection.outline import tensors

CHECKPOINTING = ("enable_gradient_checkpointing", "set_grad_checkpointing")
BROKEN = ("open_clip_attention", "zero_shot")
"""open_clip's custom blocks can't be called as its checkpointing calls them; a classifier is checkpointed inside."""
SIDE = {
    "side_tuning": ("vit", "open_clip", "hf_clip", "swin"),
    "ladder_side_tuning": ("llama", "bert", "gpt2", "t5"),
    "res_tuning_bypass": ("vit", "eva", "open_clip", "hf_clip"),
}


def towers() -> list[tuple[str, str]]:
    return [(name, tower.name) for name in MODELS for tower in mmpeft.anatomy(MODELS[name]()).towers if tower.blocks]


def watch(modules: Iterable[tuple[str, nn.Module]]) -> list[tuple[str, bool]]:
    """Return a list that grows, as modules run, by their paths and whether their outputs have a graph."""
    seen: list[tuple[str, bool]] = []

    def note(path: str, output: Any) -> None:
        seen.append((path, any(tensor.requires_grad for tensor in tensors(output))))

    for path, module in modules:
        module.register_forward_hook(lambda _, __, output, path=path: note(path, output))
    return seen


def blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    found = mmpeft.anatomy(model)
    return ((b.path, found.model.get_submodule(b.path)) for tower in found.towers for b in tower.blocks)


def checkpointed(case: Any, model: Any) -> bool:
    """Turn gradient checkpointing on, where the model has it."""
    if getattr(model, "supports_gradient_checkpointing", False):
        checkpoint_blocks(model)
        return True
    names = [name for name in CHECKPOINTING if hasattr(model, name)]
    if names and case.model not in BROKEN:
        getattr(model, names[0])()
    return bool(names)


def around(model: nn.Module, module: nn.Module) -> list[nn.Module]:
    """Return a module and all that it is in."""
    return [whole for whole in model.modules() if any(part is module for part in whole.modules())]


def gradients(case: Any, model: nn.Module, adapters: Any) -> list[Tensor]:
    case.run(model).square().mean().backward()
    return [parameter.grad.clone() for parameter in adapters.parameters()]


@pytest.mark.parametrize(("name", "tower"), towers())
def test_nothing_in_front_of_the_first_edit_has_a_graph(make_case: Any, name: str, tower: str) -> None:
    """When checkpointed, T5's decoder makes a bias for its attention to the encoder that wants a gradient."""
    case = make_case("lora", name)
    model = case.build().train()
    adapters = case.adapt(model, seed=1, layers="last:1", towers=tower, targets="all")
    edited = next(t for t in mmpeft.anatomy(model).towers if t.name == tower).blocks[-1].path
    seen = watch(blocks(model))
    plain = gradients(case, model, adapters)
    order = [path for path, _ in seen]
    assert order.index(edited) > 0 and dict(seen)[edited]
    assert [path for path, graph in seen[: order.index(edited)] if graph] == []
    if checkpointed(case, model):
        seen.clear()
        for parameter in adapters.parameters():
            parameter.grad = None
        for one, other in zip(gradients(case, model, adapters), plain, strict=True):
            torch.testing.assert_close(one, other)
        front = [path for path, graph in seen[: order.index(edited)] if graph]
        assert front == ([] if (name, tower) != ("t5", "decoder") else ["decoder.block.0"])


@pytest.mark.parametrize(("method", "name"), [(method, name) for method, names in SIDE.items() for name in names])
def test_a_side_network_builds_no_graph_in_the_backbone(make_case: Any, method: str, name: str) -> None:
    case = make_case(method, name)
    model = case.build().train()
    adapters = case.adapt(model, seed=1)
    joined = {id(part) for _, host in own_modules(model) if "_graft" in host.__dict__ for part in around(model, host)}
    inside = tuple(f"{path}." for path, _ in blocks(model))
    seen = watch((path, m) for path, m in own_modules(model) if path.startswith(inside) and id(m) not in joined)
    case.run(model).square().mean().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())
    assert len(seen) > len(inside) and [path for path, graph in seen if graph] == []
