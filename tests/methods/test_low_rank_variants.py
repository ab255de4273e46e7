"""LoRA's variants by their formulas in double precision: a start from the weight, a frozen A, two learning rates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmpeft
from mmpeft.training.config import TrainConfig
from mmpeft.training.optimizer import make_optimizer

STARTS = ("pissa", "olora")


def layer(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10, bias)).double()


def moved(adapters: Any, name: str = "main") -> dict[str, Tensor]:
    """Move the weights, and return them by their last name."""
    torch.manual_seed(1)
    for parameter in adapters.parameters(name):
        parameter.data.add_(torch.randn_like(parameter))
    return {key.rpartition(".")[2]: value for key, value in adapters.state_dict(name).items()}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_from_the_weight_the_start_is_taken_off(start: str, method: str) -> None:
    model, x = layer(), torch.randn(4, 6, dtype=torch.float64)
    weight, frozen = model[0].weight.detach().clone(), model(x)
    adapters = mmpeft.adapt(model, {"method": method, "rank": 2, "alpha": 3, "init": start, "targets": "all"})
    scale, state = 1.5, {k.rpartition(".")[2]: v.clone() for k, v in adapters.state_dict().items()}
    a, b = state["lora_A"], state["lora_B"]
    if start == "pissa":
        u, s, v = torch.linalg.svd(weight)
        torch.testing.assert_close(scale * b @ a, u[:, :2] @ torch.diag(s[:2]) @ v[:2])
        torch.testing.assert_close(a @ a.T, torch.diag(s[:2] / scale))
        torch.testing.assert_close(b.T @ b, torch.diag(s[:2] / scale))
    else:
        torch.testing.assert_close(b.T @ b, torch.eye(2).double())
        torch.testing.assert_close(b @ a, b @ b.T @ weight)
    torch.testing.assert_close(model(x), frozen, rtol=1e-12, atol=1e-12)
    assert {key.rpartition(".")[2] for key, _ in adapters.named_parameters()} <= {"lora_A", "lora_B", "magnitude"}
    new = moved(adapters)
    changed = weight + scale * (new["lora_B"] @ new["lora_A"] - b @ a)
    if method == "dora":
        changed = changed * (new["magnitude"] / changed.norm(dim=1))[:, None]
    torch.testing.assert_close(model(x), F.linear(x, changed, model[0].bias), rtol=1e-10, atol=1e-10)
    adapters.merge()
    torch.testing.assert_close(model[0].weight, changed, rtol=1e-10, atol=1e-10)
    adapters.unmerge()
    adapters.remove()
    assert torch.equal(model[0].weight, weight) and torch.equal(model(x), frozen)


@pytest.mark.parametrize("start", STARTS)
def test_from_the_weight_it_is_shared_as_a_plain_lora_of_twice_the_rank(start: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, x = layer(), torch.randn(4, 6, dtype=torch.float64)
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, alpha=3, init=start, targets="all"))
    moved(adapters)
    expected = model(x)
    adapters.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 4
    theirs = peft.PeftModel.from_pretrained(layer(), tmp_path).double()
    torch.testing.assert_close(theirs(x), expected, rtol=1e-6, atol=1e-6)
    fresh = layer()
    mmpeft.load(fresh, tmp_path)
    assert torch.equal(fresh(x), expected)


def test_a_rank_beyond_the_weight_has_no_start_in_it() -> None:
    with pytest.raises(ValueError, match=r"rank: 7 for init: 'pissa', and a weight of \(10, 6\) has 6 at most"):
        mmpeft.adapt(layer(), mmpeft.LoRA(rank=7, init="pissa", targets="all"))


def test_gaussian_is_as_wide_as_it_says() -> None:
    torch.manual_seed(0)
    adapters = mmpeft.adapt(nn.Sequential(nn.Linear(4000, 3)), mmpeft.LoRA(rank=5, init="gaussian", targets="all"))
    a, b = adapters.parameters()
    assert abs(a.std().item() - 1 / 5) < 0.005 and not b.any()


def test_with_a_frozen_a_only_b_learns() -> None:
    model, x = layer(), torch.randn(4, 6, dtype=torch.float64)
    adapters = mmpeft.adapt(model, mmpeft.LoRAFA(rank=2, alpha=3, targets="all"))
    assert [key for key, _ in adapters.named_parameters()] == ["main.0.lora_fa.lora_B"]
    new = moved(adapters)
    y = model(x)
    torch.testing.assert_close(y, F.linear(x, model[0].weight + 1.5 * new["lora_B"] @ new["lora_A"], model[0].bias))
    y.square().sum().backward()
    (b,) = adapters.parameters()
    torch.testing.assert_close(b.grad, 1.5 * (2 * y.detach()).T @ (x @ new["lora_A"].T))


def test_b_may_learn_at_another_rate_than_a() -> None:
    model = layer()
    adapters = mmpeft.adapt(model, [mmpeft.LoRA(rank=2, plus_ratio=16, targets="all"), mmpeft.BitFit()])
    config = TrainConfig(epochs=1, lr=0.1, optimizer="sgd")
    parameters = dict(adapters.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = make_optimizer(parameters, config, adapters.rates())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    steps = {name.rpartition(".")[2]: (before[name] - p).mean().item() for name, p in parameters.items()}
    assert steps == pytest.approx({"lora_A": 0.1, "lora_B": 1.6, "bias": 0.1})


def test_a_rank_beyond_all_numbers_of_a_weight_is_refused() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(
        ValueError, match=r"rank: 25 is more than the weight of 0 has numbers \(6 x 4\).* no more than 4"
    ):
        mmpeft.adapt(model, mmpeft.LoRA(rank=25, targets="all"))
    mmpeft.adapt(model, mmpeft.LoRA(rank=24, targets="all"))
