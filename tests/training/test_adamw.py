from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.training.adamw import MasterAdamW, ProjectedAdamW


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 8))


def optimizer_of(adapters: mmpeft.Adapters, **how: Any) -> ProjectedAdamW:
    named = dict(adapters.named_parameters())
    fixed = {named[name]: own for name, own in adapters.fixed_factors().items()}
    return ProjectedAdamW(adapters.parameters(), fixed, **how)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x = torch.arange(120.0).view(10, 12).sin()
    for _ in range(steps):
        optimizer.zero_grad()
        (30 * (model(x) - 1).square().sum()).backward()
        optimizer.step()


SHAPES = {"0": (16, 12), "2": (8, 16)}
"""Of the network's weights, (out, in)."""


def both_after(steps: int, size: float, decay: float, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Let peft's optimizer and ours, all else as peft has it, make steps of a size on the same gradients of B.

    Returns ours and theirs: each B of a LoRA (4 of rank), and a bias.
    """
    from peft.optimizers.lorafa import LoraFAOptimizer

    torch.manual_seed(0)
    weights = {
        name: (torch.randn(4, n, dtype=dtype), torch.zeros(m, 4, dtype=dtype)) for name, (m, n) in SHAPES.items()
    }
    named = {
        f"{name}.lora_{letter}": value
        for name, pair in weights.items()
        for letter, value in zip("AB", pair, strict=True)
    }
    named["bias"] = torch.ones(5, dtype=dtype)
    theirs = {name: nn.Parameter(value.clone(), requires_grad="lora_A" not in name) for name, value in named.items()}
    ours = {name: nn.Parameter(value.clone()) for name, value in named.items() if "lora_A" not in name}
    group = {"params": [*theirs.values()], "names": [*theirs], "scaling_factors": [2.0] * len(theirs)}
    reference = LoraFAOptimizer([group], lr=1e-2, weight_decay=decay)
    fixed = {ours[f"{name}.lora_B"]: (a, 2.0) for name, (a, _) in weights.items()}
    optimizer = ProjectedAdamW([*ours.values()], fixed, lr=1e-2, weight_decay=decay)
    for _ in range(steps):
        for name, parameter in ours.items():
            gradient = size * torch.randn(parameter.shape, dtype=dtype)
            parameter.grad, theirs[name].grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    return [(parameter.detach(), theirs[name].detach()) for name, parameter in ours.items()]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("size", [1e-8, 1e-6, 1e-5, 1e-3, 1.0])
def test_lora_fa_steps_as_peft_does(monkeypatch: pytest.MonkeyPatch, size: float, decay: float) -> None:
    """At peft's own defaults, with its product of gradient and projection in full precision: equal but for rounding."""
    from peft.optimizers import lorafa

    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    for steps in (1, 7):
        for ours, theirs in both_after(steps, size, decay, torch.float64):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * float(theirs.abs().max()))
            assert theirs.abs().max() > min(0.05 * size, 5e-3), "it moves"


@pytest.mark.parametrize("size", [1e-8, 1e-5, 1.0])
def test_lora_fa_in_single_precision_is_peft_but_for_the_rounding_of_its_product_to_bfloat16(size: float) -> None:
    for ours, theirs in both_after(3, size, 0.0, torch.float32):
        assert (ours - theirs).abs().max() < 2 * 2**-8 * theirs.abs().max()


def test_the_projection_is_nearest_to_the_full_gradient() -> None:
    """The change ``s g A`` of the weight, for the projected g, is the full gradient projected on A's rows."""
    torch.manual_seed(0)
    a, full, scale = torch.randn(3, 7), torch.randn(5, 7), 2.0
    b = nn.Parameter(torch.zeros(5, 3))
    b.grad = scale * full @ a.T
    ProjectedAdamW([b], {b: (a, scale)}).step()
    rows = torch.linalg.qr(a.T).Q
    torch.testing.assert_close(scale * b.grad @ a, full @ rows @ rows.T, rtol=1e-4, atol=1e-5)


def test_the_projection_is_computed_once_and_kept() -> None:
    model = network()
    adapters = mmpeft.adapt(model, mmpeft.LoRAFA(rank=4, targets="all"))
    optimizer = optimizer_of(adapters)
    train(model, optimizer, 1)
    kept = [optimizer.state[b]["projection"] for b in adapters.parameters()]
    train(model, optimizer, 1)
    assert all(optimizer.state[b]["projection"] is own for b, own in zip(adapters.parameters(), kept, strict=True))
    assert [own.shape for own in kept] == [(4, 4), (4, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_dict_goes_on_to_the_bit(dtype: torch.dtype) -> None:
    model = network()
    adapters = mmpeft.adapt(model, mmpeft.LoRAFA(rank=4, targets="all"), dtype=dtype)
    optimizer = optimizer_of(adapters, lr=1e-2)
    train(model, optimizer, 3)
    twin = copy.deepcopy(model)
    resumed = optimizer_of(mmpeft.adapters(twin), lr=1e-2)
    resumed.fixed = {b: (torch.full_like(a, torch.nan), s) for b, (a, s) in resumed.fixed.items()}
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 3)
    train(twin, resumed, 3)
    for left, right in zip(adapters.parameters(), mmpeft.adapters(twin).parameters(), strict=True):
        assert left.dtype == dtype and torch.equal(left, right)


def test_half_weights_move_by_steps_below_their_last_place() -> None:
    """100 steps of 1e-4 from 1: plain AdamW in bf16 stays at 1, whose next smaller number is 0.996."""

    def fit(kind: type[torch.optim.AdamW]) -> nn.Parameter:
        parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
        optimizer = kind([parameter], lr=1e-4, weight_decay=0.0)
        for _ in range(100):
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        return parameter

    assert torch.equal(fit(torch.optim.AdamW), torch.ones(4, dtype=torch.bfloat16))
    assert torch.equal(fit(MasterAdamW), torch.full((4,), 0.99, dtype=torch.bfloat16))


def test_half_weights_have_moments_in_fp32() -> None:
    parameter = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    parameter.grad = torch.ones_like(parameter)
    optimizer = MasterAdamW([parameter])
    optimizer.step()
    assert {value.dtype for value in optimizer.state[parameter].values()} == {torch.float32}
    assert optimizer.state[parameter].keys() == {"step", "exp_avg", "exp_avg_sq", "master"}
    assert parameter.dtype == parameter.grad.dtype == torch.bfloat16


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    parameter = nn.Parameter(torch.ones(2, 3))

    def closure() -> torch.Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert ProjectedAdamW([parameter], {parameter: (torch.eye(3), 1.0)}).step(closure).item() == 6.0
    assert torch.equal(parameter.grad, torch.full((2, 3), 2.0))
