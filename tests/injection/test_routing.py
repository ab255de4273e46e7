"""A routed batch against its samples alone: outputs and gradients of every kind, and what is kept between batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import mmpeft
from mmpeft.edits.together import Together

NAMES = ["a", "b", None, "c", "a", "b"]
SERVED = ["a", "b", "c", "c", "a", "b"]
FEED = {"method": "lora", "rank": 2, "targets": ["mlp.down", "attn.out"]}
MIXES: dict[str, tuple[str, list[Any]]] = {
    "lora, ranks": ("vit", [{"method": "lora", "rank": rank, "alpha": 3} for rank in (2, 3, 16)]),
    "lora, targets": ("llama", [FEED, {"method": "lora", "rank": 3}, {"method": "lora", "rank": 2, "alpha": 1}]),
    "lora, starts": ("vit", [{"method": "lora", "rank": 2, "init": init} for init in ("pissa", "uniform", "olora")]),
    "lora, fused rows": ("gpt_neox", [{"method": "lora", "rank": rank} for rank in (2, 3, 2)]),
    "lora, windows": ("swin", [{"method": "lora", "rank": rank} for rank in (2, 3, 2)]),
    "lora, packed projection": ("open_clip", [{"method": "lora", "rank": rank} for rank in (2, 3, 2)]),
    "lora-fa and dora": ("vit", [{"method": "lora_fa", "rank": 2}, {"method": "dora", "rank": 2}, FEED]),
    "ia3": ("llama", ["ia3"] * 3),
    "ssf": ("vit", ["ssf"] * 3),
    "ssf, channels in front": ("convnext", ["ssf"] * 3),
    "pfeiffer": ("llama", [{"method": "pfeiffer", "bottleneck": width} for width in (4, 4, 3)]),
    "adapter+": ("vit", [{"method": "adapter_plus", "bottleneck": 4}] * 3),
    "adaptformer": ("vit", [{"method": "adaptformer", "bottleneck": 4, "scale": scale} for scale in (0.1, 0.5, 0.1)]),
    "adaptformer, norm behind": ("vit", [{"method": "adaptformer", "bottleneck": 4, "norm": "out"}] * 3),
    "vpt": ("vit", [{"method": "vpt", "tokens": 3, "project": project} for project in (None, 6, 6)]),
    "prompt tuning": ("llama", [{"method": "prompt_tuning", "tokens": 3}] * 3),
    "p-tuning": ("t5", [{"method": "p_tuning", "tokens": 3, "hidden": 8}] * 3),
    "prefixes": ("llama", [{"method": "prefix_tuning", "tokens": tokens, "hidden": 8} for tokens in (3, 3, 2)]),
    "methods": ("vit", [[{"method": "lora", "rank": 2}, "ia3"], ["ia3", {"method": "lora", "rank": 3}], "ssf"]),
    "lora and others": ("vit", [{"method": "lora", "rank": 2}, "bitfit", {"method": "pfeiffer", "bottleneck": 4}]),
}
INSERTING = ("vpt", "prompt tuning", "p-tuning")
ROUNDED = ("prefixes", "lora, packed projection")
"""Samples without an adapter are computed by another kernel of attention than in the frozen model."""


def several(case: Any, methods: Sequence[Any]) -> tuple[Any, mmpeft.Adapters]:
    """Return the model in double precision with adapters a, b, c of random weights, all of them trained."""
    model = case.build().double()
    for number, (name, method) in enumerate(zip("abc", methods, strict=False)):
        torch.manual_seed(number)
        adapters = mmpeft.adapt(model, method, name=name)
        with torch.no_grad():
            for parameter in adapters.parameters(name):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    for name in adapters.names:
        adapters.activate(name, trainable=True)
    return model, adapters


def run(case: Any, model: Any) -> Tensor:
    batch = case.batch(len(NAMES))
    found: Tensor = case.run(model, batch.double() if batch.is_floating_point() else batch)
    return found


def gradients(adapters: mmpeft.Adapters, output: Tensor) -> dict[str, Tensor]:
    """Return the gradients of all adapters, added up where they have been asked for before."""
    output.backward()
    parameters = {f"{n} {key}": p for n in adapters.names for key, p in adapters.named_parameters(n)}
    return {key: torch.zeros_like(p) if p.grad is None else p.grad.clone() for key, p in parameters.items()}


@pytest.mark.parametrize("mix", MIXES)
def test_outputs_and_gradients_are_those_of_each_sample_alone(mix: str, make_case: Any) -> None:
    kind, methods = MIXES[mix]
    case, names = make_case("lora", kind), SERVED if mix in INSERTING else NAMES
    model, adapters = several(case, methods)
    with adapters.off():
        frozen = run(case, model)
    expected, total = frozen.detach().clone(), torch.zeros(())
    by_sample = torch.randn(frozen.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for name in adapters.names:
        adapters.activate(name)
        own = [sample for sample, other in enumerate(names) if other == name]
        output = run(case, model)[own]
        expected[own] = output.detach()
        total = total + (output * by_sample[own]).sum()
    alone = gradients(adapters, total)
    model.zero_grad()
    with adapters.route(names), torch.no_grad():
        quick = run(case, model)
    with adapters.route(names):
        routed = run(case, model)
        together = gradients(adapters, (routed * by_sample).sum())
    for found in (quick, routed):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        left = [sample for sample, name in enumerate(names) if name is None]
        assert mix in ROUNDED or torch.equal(found[left], frozen[left])
    for key, value in alone.items():
        torch.testing.assert_close(together[key], value, rtol=1e-9, atol=1e-9, msg=key)


def stacks(model: Any) -> list[Together]:
    grafts = [module._graft for module in model.modules() if "_graft" in module.__dict__]
    return [call for graft in grafts for call in graft.calls if isinstance(call, Together)]


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix in ("ia3", "ssf", "adapter+", "vpt", "prompt tuning")])
def test_each_host_has_one_call_for_all(mix: str, make_case: Any) -> None:
    kind, methods = MIXES[mix]
    model, adapters = several(make_case("lora", kind), methods)
    with adapters.route(SERVED):
        schedules = [m._graft.now().schedule for m in model.modules() if "_graft" in m.__dict__]
        calls = [schedule.inputs + schedule.outputs for schedule in schedules]
        assert stacks(model) and all(call.names == ("a", "b", "c") for call in stacks(model))
        assert all(len({call.binding.point for call in own}) == len(own) for own in calls)


@pytest.fixture
def lora(make_case: Any) -> tuple[Any, Any, mmpeft.Adapters]:
    case = make_case("lora", "vit")
    return case, *several(case, [{"method": "lora", "rank": 2}] * 3)


@torch.no_grad()
def test_stacked_weights_are_kept_until_they_change(lora: Any) -> None:
    case, model, adapters = lora
    with adapters.route(SERVED):
        first = run(case, model)
        kept = {id(part) for call in stacks(model) for part in call.weights.kept}
    with adapters.route(SERVED[::-1]):
        run(case, model)
        assert kept == {id(part) for call in stacks(model) for part in call.weights.kept}
        adapters.parameters("a")[1].add_(1.0)
        assert not torch.equal(run(case, model)[1], first[1])
    adapters.activate("a")
    changed = run(case, model)
    with adapters.route(SERVED):
        torch.testing.assert_close(run(case, model)[[0, 4]], changed[[0, 4]], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("way", ["data", "assign", "precision"])
@torch.no_grad()
def test_exchanged_weights_are_seen_by_the_next_batch(way: str, lora: Any) -> None:
    case, model, adapters = lora
    with adapters.route(SERVED):
        run(case, model)
    if way == "data":
        adapters.parameters("a")[1].data = torch.ones_like(adapters.parameters("a")[1])
    elif way == "assign":
        model.load_state_dict({key: value + 0.1 for key, value in model.state_dict().items()}, assign=True)
    else:
        model.float().double()
    adapters.activate("a")
    expected = run(case, model)
    with adapters.route(SERVED):
        torch.testing.assert_close(run(case, model)[[0, 4]], expected[[0, 4]], rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_routes_nest_and_copies_are_independent(lora: Any) -> None:
    case, model, adapters = lora
    with adapters.route(SERVED):
        first = run(case, model)
        with adapters.route(SERVED[::-1]):
            other = run(case, model)
        with adapters.route(["a", *SERVED[1:]]):
            assert torch.equal(run(case, model), first)
        assert torch.equal(run(case, model), first) and not torch.equal(first, other)
        twin = copy.deepcopy(model)
        adapters.parameters("a")[1].add_(1.0)
        assert torch.equal(run(case, twin), first) and not torch.equal(run(case, model), first)
    assert adapters.active == {"c": 1.0}


@torch.no_grad()
def test_one_adapter_for_all_samples_is_the_adapter(lora: Any) -> None:
    case, model, adapters = lora
    adapters.activate("b")
    expected = run(case, model)
    with adapters.route(["b"] * len(NAMES)):
        assert torch.equal(run(case, model), expected) and not stacks(model)


@torch.no_grad()
def test_removing_an_adapter_ends_its_part(lora: Any) -> None:
    case, model, adapters = lora
    adapters.activate("b")
    expected = run(case, model)
    with adapters.route(SERVED):
        run(case, model)
    adapters.remove("a")
    with adapters.route(["b", None, "c", "c", "b", "b"]):
        torch.testing.assert_close(run(case, model)[[0, 4, 5]], expected[[0, 4, 5]], rtol=1e-10, atol=1e-10)


def test_autocast_and_levels_of_memory(lora: Any) -> None:
    case, model, adapters = lora
    with adapters.route(NAMES):
        exact = gradients(adapters, run(case, model).square().sum())
        for level in ("lean", "leanest"):
            model.zero_grad()
            with mmpeft.use_memory(model, level):
                found = gradients(adapters, run(case, model).square().sum())
            assert all(torch.equal(found[key], value) for key, value in exact.items())
        whole, rough = run(case, model), None
        model.float()
        with torch.autocast("cpu", torch.bfloat16):
            rough = case.run(model, case.batch(len(NAMES)))
    torch.testing.assert_close(rough.double(), whole, rtol=0.1, atol=0.1 * whole.abs().max().item())


@torch.no_grad()
def test_a_routed_model_compiles(lora: Any) -> None:
    case, model, adapters = lora
    torch._dynamo.reset()
    with adapters.route(NAMES):
        expected = run(case, model)
        fast = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(run(case, fast), expected, rtol=1e-10, atol=1e-10)
