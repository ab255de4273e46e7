from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmpeft.kernels import bottleneck as kernel
from mmpeft.kernels.bottleneck import ACTIVATIONS, Shape, bottleneck
from mmpeft.kernels.dropout import keep_mask, kept_share

KINDS: dict[str, dict[str, Any]] = {
    "plain": {"biased": False},
    "biased": {},
    "normed": {"normed": True},
    "learned": {"learned": 1},
    "all": {"normed": True, "learned": 7, "dropout": 0.4},
    "dropout without biases": {"biased": False, "dropout": 0.4},
}
NAMES = ("z", "gain", "shift", "down", "b", "up", "c", "scale")


def make(kind: str, dtype: torch.dtype = torch.float64, weights: torch.dtype | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    options = {"biased": True, "normed": False, "learned": 0} | KINDS[kind]
    shapes = {"z": (2, 5, 6), "down": (3, 6), "up": (7, 3)}
    shapes |= {"b": (3,), "c": (7,)} if options["biased"] else {}
    shapes |= {"gain": (6,), "shift": (6,)} if options["normed"] else {}
    shapes |= {"scale": (options["learned"],)} if options["learned"] else {}
    made = {name: torch.randn(shapes[name]) for name in NAMES if name in shapes}
    return {name: t.to(dtype if name == "z" else weights or dtype).requires_grad_() for name, t in made.items()}


def shape_of(kind: str, activation: str = "gelu") -> Shape:
    return Shape(activation, 0.7, KINDS[kind].get("dropout", 0.0))


def fused(kind: str, activation: str, own: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(4)
    norm = (own["gain"], own["shift"]) if "gain" in own else None
    down, up = (own["down"], own.get("b")), (own["up"], own.get("c"))
    return bottleneck(own["z"], down, up, shape_of(kind, activation), norm=norm, scale=own.get("scale"))


def formula(kind: str, activation: str, own: dict[str, Tensor], seed: int) -> Tensor:
    """The formula, step by step, with the mask of this seed."""
    z, rate = own["z"], KINDS[kind].get("dropout", 0.0)
    z = F.layer_norm(z, (6,), own["gain"], own["shift"]) if "gain" in own else z
    hidden = ACTIVATIONS[activation][0](F.linear(z, own["down"], own.get("b")))
    if rate:
        mask = keep_mask(torch.Size((3, 10)), rate, seed, z.device)
        hidden = hidden * mask.T.view(2, 5, 3) / kept_share(rate)
    return 0.7 * own.get("scale", 1.0) * F.linear(hidden, own["up"], own.get("c"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_formula(kind: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "new_seed", lambda: 9)
    own = make(kind)
    grad = torch.randn(2, 5, 7, dtype=torch.float64)
    found, expected = fused(kind, activation, own), formula(kind, activation, own, 9)
    torch.testing.assert_close(found, expected)
    pairs = [torch.autograd.grad(y, list(own.values()), grad) for y in (found, expected)]
    for gradient, right in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, right)
    for name, right in zip(own, pairs[1], strict=True):
        alone = {key: tensor if key == name else tensor.detach() for key, tensor in own.items()}
        torch.testing.assert_close(torch.autograd.grad(fused(kind, activation, alone), own[name], grad)[0], right)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_and_theirs(kind: str, activation: str) -> None:
    own = make(kind)

    def function(*tensors: Tensor) -> Tensor:
        return fused(kind, activation, dict(zip(own, tensors, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(own.values()))
    assert torch.autograd.gradgradcheck(function, tuple(own.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_z_and_the_weights_by_reference(kind: str, dtype: torch.dtype) -> None:
    own, kept = make(kind, dtype, torch.float32), []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = fused(kind, "gelu", own)
    assert set(kept) == {tensor.data_ptr() for tensor in own.values()}
    gradients = torch.autograd.grad(y, list(own.values()), torch.randn(y.shape).to(dtype))
    assert [gradient.dtype for gradient in gradients] == [tensor.dtype for tensor in own.values()]
    right, ones = make(kind), torch.ones(2, 5, 7, dtype=torch.float64)
    expected = torch.autograd.grad(fused(kind, "gelu", right), list(right.values()), ones)
    found = torch.autograd.grad(fused(kind, "gelu", own), list(own.values()), ones.to(dtype))
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient.double(), exact, rtol=0.05, atol=0.1 if dtype == torch.bfloat16 else 1e-4)


def test_autocast_keeps_z_in_its_own_precision() -> None:
    own = make("all", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = fused("all", "gelu", own)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), fused("all", "gelu", own), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert {tensor.grad.dtype for tensor in own.values() if tensor.grad is not None} == {torch.float32}


def test_the_compiler_computes_it_step_by_step() -> None:
    own = make("normed")
    compiled = torch.compile(lambda: fused("normed", "silu", own), backend="eager")
    torch.testing.assert_close(compiled(), fused("normed", "silu", own))


def test_checkpointing_draws_the_same_mask_again() -> None:
    own = make("all")
    torch.manual_seed(1)
    norm = (own["gain"], own["shift"])
    down, up = (own["down"], own["b"]), (own["up"], own["c"])

    def run(z: Tensor) -> Tensor:
        return bottleneck(z, down, up, shape_of("all"), norm=norm, scale=own["scale"]).square()

    torch.manual_seed(1)
    found = torch.autograd.grad(run(own["z"]).sum(), list(own.values()))
    torch.manual_seed(1)
    y = checkpoint(run, own["z"], use_reentrant=False)
    for gradient, expected in zip(torch.autograd.grad(y.sum(), list(own.values())), found, strict=True):
        assert torch.equal(gradient, expected)
