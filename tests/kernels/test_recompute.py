"""What is kept, what is made again, and what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from mmpeft.kernels import recompute
from mmpeft.kernels.backends import MemoryLevel
from mmpeft.kernels.low_rank import Update, low_rank_linear
from mmpeft.kernels.recompute import recomputing, set_aside

LEVELS: tuple[MemoryLevel, ...] = ("lean", "leanest")
UNIT = 64 * 32
"""Numbers in a tensor of the tests."""


def kept(function: Callable[[Tensor], Tensor], x: Tensor, level: MemoryLevel) -> float:
    """Return the tensors of x's size in fp32 that the backward pass keeps; parameters don't count."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor), recomputing(level):
        y = function(x)
    y.sum().backward()
    for parameter in (WEIGHT, GATE, UP, BOTH, THREE, A, B):
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storages.values()) / (4 * UNIT)


def gradients(function: Callable[[Tensor], Tensor], x: Tensor, level: MemoryLevel, *others: Tensor) -> list[Tensor]:
    with recomputing(level):
        y = function(x)
    return list(torch.autograd.grad(y.sin().sum(), [x, *others]))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(64, 32, requires_grad=True)


WEIGHT, GATE, UP = (nn.Parameter(torch.randn(32, 32) / 6, requires_grad=False) for _ in range(3))
THREE = nn.Parameter(torch.randn(96, 32) / 6, requires_grad=False)
BOTH = nn.Parameter(torch.cat([GATE, UP]), requires_grad=False)
A = nn.Parameter(torch.randn(4, 32))
B = nn.Parameter(torch.randn(32, 4))


def low_rank(x: Tensor, weight: Tensor = WEIGHT) -> Tensor:
    return low_rank_linear(x, weight, None, [Update(A, B, 0.5)])


def swiglu(x: Tensor) -> Tensor:
    return low_rank(F.silu(low_rank(x, GATE)) * low_rank(x, UP))


def geglu(x: Tensor) -> Tensor:
    hidden, gate = F.linear(x, BOTH).chunk(2, -1)
    return low_rank(hidden * F.gelu(gate))


def new_gelu(x: Tensor) -> Tensor:
    return low_rank(0.5 * x * (1 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3.0)))))


def quick_gelu(x: Tensor) -> Tensor:
    return low_rank(x * torch.sigmoid(1.7 * x))


def behind_norm(x: Tensor) -> Tensor:
    return low_rank(F.layer_norm(x, (32,), WEIGHT[0], WEIGHT[1]))


def rms_norm(x: Tensor) -> Tensor:
    wide = x.to(torch.float64)
    return low_rank(WEIGHT[0] * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype))


def with_relu(x: Tensor) -> Tensor:
    return low_rank(F.relu(low_rank(x)))


def residual(x: Tensor) -> Tensor:
    return low_rank(x + low_rank(x))


def attention(x: Tensor) -> Tensor:
    heads = (part.view(4, 16, 2, 16).transpose(1, 2) for part in F.linear(x, THREE).chunk(3, -1)[::-1])
    y = F.scaled_dot_product_attention(*heads, attn_mask=None)
    return low_rank(y.transpose(1, 2).reshape(64, 32))


FUNCTIONS = [attention, swiglu, geglu, new_gelu, quick_gelu, behind_norm, rms_norm, with_relu, residual]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_the_same_to_the_bit(function: Callable[[Tensor], Tensor], level: MemoryLevel, x: Tensor) -> None:
    expected = gradients(function, x, "standard", A, B)
    assert all(map(torch.equal, gradients(function, x, level, A, B), expected))


@pytest.mark.parametrize(
    ("function", "standard", "lean", "leanest"),
    [
        (swiglu, 5, 3, 1),  # x, gate, silu(gate), up, their product
        (geglu, 4, 2, 1),  # gate and hidden are one tensor; the gelu of one, their product
        (quick_gelu, 3, 1, 1),
        (with_relu, 2, 2, 1),
        (residual, 2, 2, 2),
        (attention, 4, 2, 2),  # q, k, v; what was found; x is kept in their place
        (lambda x: behind_norm(F.silu(x)), 3, 1, 1),
    ],
)
def test_what_is_kept(function: Callable[[Tensor], Tensor], standard: int, lean: int, leanest: int, x: Tensor) -> None:
    found = [int(kept(function, x, level)) for level in ("standard", *LEVELS)]
    assert found == [standard, lean, leanest]


def test_a_composed_norm_keeps_its_input_alone(x: Tensor) -> None:
    assert kept(rms_norm, x, "standard") > 3
    assert kept(rms_norm, x, "lean") == pytest.approx(1 + 2 / 32)  # and a number of 64 bits per row


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_of_gradients(level: MemoryLevel, x: Tensor) -> None:
    found = []
    for own in ("standard", level):
        with recomputing(own):
            y = quick_gelu(x)
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [x, A, B]))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_by_differences(level: MemoryLevel) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    weight = nn.Parameter(torch.randn(6, 6, dtype=torch.float64), requires_grad=False)
    a, b = torch.randn(2, 6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)

    def function(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        with recomputing(level):
            hidden = F.layer_norm(x, (6,))
            gate, up = (low_rank_linear(hidden, weight, None, [Update(a, b, s)]) for s in (0.5, 2.0))
            return low_rank_linear(F.silu(gate) * up, weight, None, [Update(a, b, 1.0)])

    assert torch.autograd.gradcheck(function, (x, a.requires_grad_(), b.requires_grad_()))


def test_each_tensor_is_made_again_once(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    own = F.silu
    monkeypatch.setattr(recompute, "_CHEAP", {counted := lambda x: (calls.append(1), own(x))[1]})
    monkeypatch.setattr(recompute, "_WATCHED", {counted})
    with recomputing("lean"):
        hidden = _called(counted, x)
        y = low_rank(hidden) + low_rank(hidden, GATE) + low_rank(hidden, UP)
    y.sum().backward()
    assert len(calls) == 2


def _called(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Call a function of ours as torch's own are called under a mode."""
    found: Tensor = torch.overrides.handle_torch_function(function, (x,), x)
    return found


def test_a_tensor_that_was_written_into_is_kept_itself(x: Tensor) -> None:
    def function(x: Tensor) -> Tensor:
        hidden = F.gelu(x)
        hidden.mul_(2)
        return low_rank(hidden)

    expected = gradients(function, x, "standard", A, B)
    assert all(map(torch.equal, gradients(function, x, "lean", A, B), expected))


def test_what_is_needed_must_not_be_written_into(x: Tensor) -> None:
    with recomputing("lean"):
        hidden = x.cos()
        y = low_rank(F.gelu(hidden))
    hidden.detach().add_(1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.* is at version 1, expected 0"):
        y.sum().backward()


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_stays_behind(level: MemoryLevel, x: Tensor) -> None:
    with recomputing(level):
        hidden = 2 * x
        y = swiglu(F.layer_norm(hidden, (32,)))
    alive = weakref.ref(hidden)
    y.sum().backward()
    del hidden, y
    gc.collect()
    assert alive() is None


def test_a_graph_that_is_kept_gives_the_same_again(x: Tensor) -> None:
    with recomputing("leanest"):
        y = swiglu(x).sum()
    first, second, third = (torch.autograd.grad(y, [x, A, B], retain_graph=True) for _ in range(3))
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, third))


@pytest.mark.parametrize("level", LEVELS)
def test_autocast_is_as_it_was(level: MemoryLevel, x: Tensor) -> None:
    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return swiglu(F.rms_norm(x, (32,)))

    expected = gradients(function, x, "standard", A, B)
    assert all(map(torch.equal, gradients(function, x, level, A, B), expected))


def test_gradient_checkpointing_goes_its_own_way(x: Tensor) -> None:
    def block(x: Tensor) -> Tensor:
        with recomputing("lean"):
            return swiglu(x)

    with set_aside() as reasons:
        assert kept(lambda x: checkpoint(block, x, use_reentrant=False), x, "standard") == 1
    assert reasons == {"gradient checkpointing computes the whole block again"}


def test_within_another_the_outer_level_counts(x: Tensor) -> None:
    def function(x: Tensor) -> Tensor:
        with recomputing("leanest"):
            return swiglu(x)

    assert kept(function, x, "lean") == 3


class Counted(TorchFunctionMode):
    """Counts torch's functions, by their number of calls, as a watch sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("level", LEVELS)
def test_what_a_fused_layer_does_is_not_watched(level: MemoryLevel, x: Tensor) -> None:
    """A mode around the watch sees what the watch is asked of; with the layer in it, these were dozens of calls."""
    with Counted() as outside, recomputing(level):
        low_rank(x)
    assert outside.calls <= 3  # what is asked of x to see in which precision to compute


def test_notes_of_tensors_that_are_gone_are_let_go(x: Tensor) -> None:
    with recomputing("lean"):
        watch: Any = recompute._active.watch
        for _ in range(100):
            F.silu(x)
        assert len(watch.notes) <= recompute.NOTES
