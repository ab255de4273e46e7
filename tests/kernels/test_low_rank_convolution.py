from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.kernels import low_rank_convolution as kernel
from mmpeft.kernels.dropout import keep_mask, kept_share
from mmpeft.kernels.low_rank_convolution import fusible_convolution, low_rank_convolution, worth_fusing
from mmpeft.kernels.updates import Update

HOSTS: dict[str, dict[str, Any]] = {
    "point": {"kernel_size": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "dilated": {"kernel_size": (3, 2), "dilation": (2, 1)},
}
UPDATES: dict[str, list[dict[str, Any]]] = {
    "one": [{}],
    "dropout": [{"dropout": 0.4}],
    "two and a mask": [{}, {"dropout": 0.3}],
    "rescaled": [{"rescaled": True}, {}],
    "rescaled with dropout": [{"rescaled": True, "dropout": 0.4}],
}
RULE = kernel.cheaper_merged
EVERY = pytest.mark.parametrize(("host", "kind"), [(host, kind) for host in HOSTS for kind in UPDATES])


@pytest.fixture(autouse=True, params=[True, False])
def _merged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is computed with a merged weight, and by thin products."""
    monkeypatch.setattr(kernel, "cheaper_merged", lambda *args: request.param)


def make(host: str, kind: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Conv2d, list[Tensor]]:
    """Return a frozen convolution, and x and then perhaps a ratio, a and b of each update."""
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, **HOSTS[host]).to(dtype).requires_grad_(False)
    made = [torch.randn(2, 4, 6, 5, dtype=torch.float64).to(dtype)]
    for options in UPDATES[kind]:
        shapes = [(6,)] * bool(options.get("rescaled")) + [(2, 4, *layer.kernel_size), (6, 2, 1, 1)]
        made += [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return layer, [tensor.requires_grad_() for tensor in made]


def updates(kind: str, tensors: list[Tensor]) -> list[Update]:
    found, rest = [], iter(tensors)
    for index, options in enumerate(UPDATES[kind]):
        own = {"scale": 1.5 - index, "seed": 5 + index} | options
        ratio = {"ratio": next(rest)} if own.pop("rescaled", False) else {}
        found.append(Update(next(rest), next(rest), **ratio, **own))
    return found


def formula(layer: nn.Conv2d, kind: str, x: Tensor, *tensors: Tensor) -> Tensor:
    y = layer._conv_forward(x, layer.weight, None)
    for update in updates(kind, [*tensors]):
        mask = keep_mask(x.shape, update.dropout, update.seed, x.device) if update.dropout else 1
        read = x * mask / (kept_share(update.dropout) if update.dropout else 1)
        y = y + update.scale * F.conv2d(layer._conv_forward(read, update.a, None), update.b)
        y = y if update.ratio is None else y * update.ratio[:, None, None]
    return y if layer.bias is None else y + layer.bias[:, None, None]


@EVERY
def test_it_is_the_formula(host: str, kind: str) -> None:
    layer, tensors = make(host, kind)
    x, *rest = tensors
    outputs = [low_rank_convolution(layer, x, updates(kind, rest)), formula(layer, kind, *tensors)]
    torch.testing.assert_close(*outputs)
    grad = torch.randn_like(outputs[0])
    pairs = [torch.autograd.grad(y, tensors, grad) for y in outputs]
    for gradient, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, expected)
    for leaf, expected in zip(tensors, pairs[1], strict=True):
        x, *rest = (tensor if tensor is leaf else tensor.detach() for tensor in tensors)
        y = low_rank_convolution(layer, x, updates(kind, rest))
        torch.testing.assert_close(torch.autograd.grad(y, leaf, grad)[0], expected)


@EVERY
def test_gradients_and_theirs(host: str, kind: str) -> None:
    layer, tensors = make(host, kind)

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        return low_rank_convolution(layer, x, updates(kind, [*rest]))

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_keeps_x_and_the_factors_by_reference(kind: str, dtype: torch.dtype) -> None:
    (layer, tensors), kept = make("strided", kind, dtype), list[Tensor]()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = low_rank_convolution(layer, tensors[0], updates(kind, tensors[1:]))
    own = {tensor.data_ptr() for tensor in (layer.weight, *tensors)}
    merged = kernel.cheaper_merged(layer, tensors[0]) and not any("dropout" in each for each in UPDATES[kind])
    thin = [] if merged else [(2, 2 * len(UPDATES[kind]), 3, 3)]
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in own] == [
        (2, 2 * len(UPDATES[kind]), 3, 3) for _ in thin
    ]
    grad = torch.ones_like(y)
    exact, right = make("strided", kind)
    expected = torch.autograd.grad(formula(exact, kind, *right), right, grad.double())
    for gradient, tensor, own in zip(torch.autograd.grad(y, tensors, grad), tensors, expected, strict=True):
        assert gradient.dtype == tensor.dtype
        tolerance = {"rtol": 0.05, "atol": 0.5} if dtype == torch.bfloat16 else {}
        torch.testing.assert_close(gradient.double(), own, **tolerance)


def test_which_calls_are_fused_and_which_merged() -> None:
    x = torch.randn(2, 4, 6, 5)
    layer = nn.Conv2d(4, 6, 3).requires_grad_(False)
    assert fusible_convolution(layer, x)
    assert not fusible_convolution(layer, x[0])
    assert not fusible_convolution(nn.Conv2d(4, 6, 3), x)
    for options in ({"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}, {"groups": 2}):
        assert not fusible_convolution(nn.Conv2d(4, 6, 3, **options).requires_grad_(False), x)
    assert RULE(layer, torch.ones(1, 4, 8, 8))
    assert not RULE(layer, torch.ones(1, 4, 6, 6))
    assert not RULE(layer.bfloat16(), torch.ones(1, 4, 8, 8).bfloat16())


def test_without_anything_to_save_it_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "cheaper_merged", RULE)
    layer, a, b = nn.Conv2d(4, 6, 3).requires_grad_(False), torch.ones(1, 4, 3, 3), torch.ones(6, 1, 1, 1)
    small, large = torch.ones(1, 4, 4, 4), torch.ones(1, 4, 9, 9)
    assert worth_fusing(layer, large, [Update(a, b, 1.0)])
    assert not worth_fusing(layer, small, [Update(a, b, 1.0)])
    assert worth_fusing(layer, small, [Update(a, b, 1.0, dropout=0.1)])
    assert worth_fusing(layer, small, [Update(a, b, 1.0, ratio=torch.ones(6))])
