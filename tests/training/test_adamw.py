from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

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


def test_lora_fa_steps_as_peft_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peft computes the projection in bf16 where it can, here in fp32; it adds eps to another root, here next to 0."""
    peft = pytest.importorskip("peft")
    from peft.optimizers import create_lorafa_optimizer, lorafa

    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"])
    theirs = peft.get_peft_model(network(), config)
    ours = network()
    adapters = mmpeft.adapt(ours, mmpeft.LoRAFA(rank=4, alpha=8, targets="all"))
    layers = [module for module in theirs.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    for layer, (_, edit, _) in zip(layers, adapters.parts()[""].places, strict=True):
        edit.lora_A.copy_(layer.lora_A["default"].weight)
    reference = create_lorafa_optimizer(theirs, r=4, lora_alpha=8, lr=1e-2)
    reference.param_groups[0]["eps"] = 1e-12
    train(theirs, reference, 5)
    train(ours, optimizer_of(adapters, lr=1e-2, eps=1e-12, weight_decay=0.0), 5)
    for layer, b in zip(layers, adapters.parameters(), strict=True):
        assert b.abs().max() > 0.01
        torch.testing.assert_close(b, layer.lora_B["default"].weight, rtol=0, atol=1e-6)


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


def test_other_parameters_are_adamws() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3)) for _ in range(2))
    ours.grad, theirs.grad = torch.arange(3.0), torch.arange(3.0)
    ProjectedAdamW([ours], {}, lr=0.1).step()
    torch.optim.AdamW([theirs], lr=0.1, eps=1e-6).step()
    assert torch.equal(ours, theirs)


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
