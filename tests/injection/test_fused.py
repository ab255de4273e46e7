"""Which low-rank edits are computed along with their hosts, and that this changes no number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.edits import DecomposedLowRank, LowRank
from mmpeft.handle.report import saved_bytes
from mmpeft.injection import fused
from mmpeft.kernels.low_rank import fusible

MODELS = ["vit", "open_clip", "open_clip_attention", "bert", "llama", "gpt2", "gpt_neox"]


def gradients(case: Any, model: Any, adapters: Any, dtype: torch.dtype) -> list[Tensor]:
    batch = case.batch()
    torch.manual_seed(5)
    y = case.run(model, batch.to(dtype) if batch.is_floating_point() else batch)
    weights = torch.linspace(-1, 1, y.numel(), dtype=dtype).view_as(y)
    return [y, *torch.autograd.grad((y * weights).sum(), adapters.parameters())]


def never(*args: Any) -> Any:
    raise AssertionError("this edit was not computed along with its host")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("training", [True, False])
def test_on_every_kind_of_host_it_is_the_edit_itself(
    make_case: Any, monkeypatch: pytest.MonkeyPatch, name: str, method: str, training: bool
) -> None:
    case = make_case(method, name)
    model = case.build().double().train(training)
    options = {"targets": "all", "dropout": 0.3 if training else 0.0}
    adapters = case.adapt(model, seed=1, **options)
    for parameter in adapters.parameters():
        parameter.data = parameter.data.double()
    with monkeypatch.context() as patch:
        patch.setattr(LowRank, "output", never)
        patch.setattr(DecomposedLowRank, "output", never)
        found = gradients(case, model, adapters, torch.float64)
    monkeypatch.setattr(fused, "fusible", lambda *args: False)
    for own, expected in zip(found, gradients(case, model, adapters, torch.float64), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-10)


def quantised(kind: str, method: dict[str, Any], dtype: torch.dtype) -> tuple[nn.Module, list[nn.Parameter]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)).to(dtype)
    mmpeft.quantize(model, kind, compute=dtype)
    parameters = mmpeft.adapt(model, {**method, "rank": 2, "targets": "all"}).parameters()
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.1)
    return model, parameters


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_quantised_host_keeps_its_packed_weight_only(monkeypatch: pytest.MonkeyPatch, kind: str, method: str) -> None:
    model, parameters = quantised(kind, {"method": method}, torch.float32)
    x = torch.randn(10, 64)
    with monkeypatch.context() as patch:
        patch.setattr(LowRank, "output", never)
        patch.setattr(DecomposedLowRank, "output", never)
        y = model(x)
        found = [y, *torch.autograd.grad(y.square().sum(), parameters)]
        entering, norms = 10 * (128 + 128) * 4, 2 * (128 + 64) * 4 * (method == "dora")
        assert saved_bytes(model, x) == entering + norms
    monkeypatch.setattr(fused, "fusible", lambda *args: False)
    y = model(x)
    for own, expected in zip(found, [y, *torch.autograd.grad(y.square().sum(), parameters)], strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_in_half_precision_gradients_are_those_of_the_edit_itself(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    model, parameters = quantised("nf4", {"method": method}, torch.bfloat16)
    x = torch.randn(10, 64).bfloat16()
    found = torch.autograd.grad(model(x).square().sum(), parameters)
    monkeypatch.setattr(fused, "fusible", lambda *args: False)
    for own, expected in zip(found, torch.autograd.grad(model(x).square().sum(), parameters), strict=True):
        assert own.dtype == torch.float32
        assert (own - expected).norm() < 0.1 * expected.norm()


def test_a_quantised_host_that_computes_in_another_precision_is_not_fused() -> None:
    model, _ = quantised("nf4", {"method": "lora"}, torch.bfloat16)
    assert fusible(model[0], torch.randn(2, 64).bfloat16())
    assert not fusible(model[0], torch.randn(2, 64))


def test_a_step_squares_no_weight() -> None:
    model = nn.Sequential(nn.Linear(8, 16))
    mmpeft.adapt(model, mmpeft.DoRA(rank=2, targets="all"))
    (edit,) = (module for module in model.modules() if isinstance(module, DecomposedLowRank))
    y = model(torch.ones(1, 8))
    made = edit.squares.made
    model(torch.ones(1, 8))
    assert edit.squares.made is made
    with torch.no_grad():
        model[0].weight.add_(2)
    assert not torch.equal(y, model(torch.ones(1, 8)))
    assert edit.squares.made is not made


def test_mixed_adapters_and_those_behind_others_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16)).double()
    for name, method in {"a": mmpeft.LoRA(rank=2, targets="all"), "b": mmpeft.DoRA(rank=2, targets="all")}.items():
        for parameter in mmpeft.adapt(model, method, name=name, dtype=torch.float64).parameters(name):
            nn.init.normal_(parameter)
    x, adapters = torch.randn(3, 8, dtype=torch.float64), mmpeft.adapters(model)
    found = {}
    for _ in range(2):
        for names, weights in ((("a", "b"), None), (("b", "a"), None), (("b", "a"), [0.5, 0.3])):
            adapters.activate(*names, weights=weights)
            found.setdefault((names, weights is None), []).append(model(x))
        monkeypatch.setattr(fused, "fusible", lambda *args: False)
    for own, expected in found.values():
        torch.testing.assert_close(own, expected)
