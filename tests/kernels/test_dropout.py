from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from mmpeft.kernels.dropout import dropped, keep_mask, kept_share, new_seed

CPU = torch.device("cpu")


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.9])
def test_a_mask_keeps_its_share_of_every_row_and_column(rate: float) -> None:
    mask = keep_mask(torch.Size((1000, 1003)), rate, 3, CPU).double()
    assert kept_share(rate) == pytest.approx(1 - rate, abs=1e-5)
    assert mask.mean().item() == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / 1e6) ** 0.5)
    apart = 6 * (rate * (1 - rate) / 1000) ** 0.5
    assert (mask.mean(0) - 1 + rate).abs().max() < apart
    assert (mask.mean(1) - 1 + rate).abs().max() < apart
    neighbours = torch.corrcoef(torch.stack([mask[:, :-1].flatten(), mask[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.005


def test_a_seed_draws_the_same_mask_again_and_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (keep_mask(torch.Size((3, 5, 7)), 0.5, 11, CPU) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, keep_mask(torch.Size((3, 5, 7)), 0.5, 12, CPU))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(0)
    seeds = [new_seed(), new_seed()]
    assert seeds[0] != seeds[1]
    torch.manual_seed(0)
    assert [new_seed(), new_seed()] == seeds


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_survivors_are_scaled_and_no_mask_is_kept(dtype: torch.dtype) -> None:
    x = torch.randn(40, 50, dtype=torch.float64).to(dtype).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda tensor: tensor):
        y = dropped(x, 0.25, True)
    assert not kept
    (gradient,) = torch.autograd.grad(y.sum(), x)
    zero = y == 0
    assert 0.15 < zero.double().mean() < 0.35
    torch.testing.assert_close(y, torch.where(zero, 0, x.detach() / 0.75))
    torch.testing.assert_close(gradient, torch.where(zero, 0, torch.full_like(x, 1 / 0.75)))


def test_it_does_nothing_without_rate_or_training() -> None:
    x = torch.randn(4)
    assert dropped(x, 0.0, True) is x
    assert dropped(x, 0.5, False) is x


def test_checkpointing_draws_the_same_mask_again() -> None:
    x = torch.randn(6, 50, requires_grad=True)
    y = checkpoint(lambda x: dropped(x, 0.5, True).square(), x, use_reentrant=False)
    assert isinstance(y, Tensor)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient == 0, y == 0)


def test_the_compiler_and_transforms_draw_by_themselves() -> None:
    x = torch.ones(2000)
    compiled = torch.compile(lambda x: dropped(x, 0.5, True), backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected = F.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(compiled(x), expected)
    rows = torch.func.vmap(lambda x: dropped(x, 0.5, True), randomness="different")(x.view(2, 1000))
    assert not torch.equal(*rows)
    assert set(rows.unique().tolist()) == {0, 2}


def test_fake_tensors_take_the_same_way_and_draw_nothing() -> None:
    before = torch.get_rng_state()
    kept: list[Tensor] = []
    with FakeTensorMode():
        x = torch.ones(8, 8, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda tensor: tensor):
            y = dropped(x, 0.5, True)
        y.sum().backward()
    assert y.shape == (8, 8)
    assert not kept
    assert torch.equal(torch.get_rng_state(), before)
