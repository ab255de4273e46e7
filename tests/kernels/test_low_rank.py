from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mmpeft
from mmpeft.kernels.dropout import keep_mask, kept_share
from mmpeft.kernels.low_rank import fusible, low_rank_add, low_rank_linear
from mmpeft.kernels.rows import Interleaved, indices, put, take
from mmpeft.kernels.updates import Update

LAYOUTS = {
    "whole": [(2, 0.5, None)],
    "two slices": [(2, 0.5, slice(0, 4)), (3, 2.0, slice(8, 12))],
    "two on the same rows": [(2, 1.0, None), (1, -0.7, None)],
    "slice inside the whole": [(2, 1.0, None), (2, 0.3, slice(2, 7))],
}
WIDTH, OUT = 6, 12
HARD: dict[str, list[dict[str, Any]]] = {
    "of every other head": [{"rows": Interleaved(2, slice(2, 4))}],
    "dropout": [{"dropout": 0.5}],
    "two masks and none": [{"dropout": 0.3, "rows": slice(0, 5)}, {"rows": slice(3, 9)}, {"dropout": 0.6}],
    "one mask for two": [{"dropout": 0.5, "seed": 7}, {"dropout": 0.5, "seed": 7, "rows": slice(0, 2)}],
    "rescaled": [{"rescaled": True}],
    "rescaled, then more": [{"rescaled": True, "rows": slice(4, 12)}, {"rows": slice(0, 6)}],
    "rescaled heads": [
        {"rescaled": True, "rows": Interleaved(2, slice(0, 3))},
        {"rescaled": True, "rows": Interleaved(2, slice(3, 6))},
    ],
    "rescaled with dropout": [{"rescaled": True, "dropout": 0.5}],
}


def make(layout: str, dtype: torch.dtype = torch.float64, factor: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Return x, weight, bias and then a, b of each update."""
    torch.manual_seed(0)
    shapes = [(2, 5, WIDTH), (OUT, WIDTH), (OUT,)]
    for rank, _, rows in LAYOUTS[layout]:  # type: ignore[attr-defined]
        shapes += [(rank, WIDTH), (OUT if rows is None else rows.stop - rows.start, rank)]
    kinds = [dtype] * 3 + [factor or dtype] * (len(shapes) - 3)
    return tuple(torch.randn(shape).to(kind) for shape, kind in zip(shapes, kinds, strict=True))


def updates(layout: str, factors: tuple[Tensor, ...]) -> list[Update]:
    pairs = zip(factors[::2], factors[1::2], LAYOUTS[layout], strict=True)
    return [Update(a, b, scale, rows) for a, b, (_, scale, rows) in pairs]


def fused(layout: str, x: Tensor, weight: Tensor, bias: Tensor | None, *factors: Tensor) -> Tensor:
    return low_rank_linear(x, weight, bias, updates(layout, factors))


def plain(layout: str, x: Tensor, weight: Tensor, bias: Tensor | None, *factors: Tensor) -> Tensor:
    """The formula, by a weight of full size."""
    for update in updates(layout, factors):
        rows = update.rows or slice(None)
        delta = torch.zeros_like(weight)
        delta[rows] = update.scale * (update.b @ update.a).to(weight.dtype)
        weight = weight + delta
    return F.linear(x, weight, bias)


def gradients(function: Callable[..., Tensor], layout: str, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    x, weight, bias, *factors = tensors
    leaves = [tensor.clone().requires_grad_() for tensor in (x, *factors)]
    y = function(layout, leaves[0], weight, bias, *leaves[1:])
    torch.manual_seed(1)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.randn(y.shape).to(y.dtype))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_and_their_gradients_in_double_precision(layout: str) -> None:
    x, weight, bias, *factors = make(layout)
    leaves = [tensor.requires_grad_() for tensor in (x, *factors)]

    def function(x: Tensor, *factors: Tensor) -> Tensor:
        return fused(layout, x, weight, bias, *factors)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_the_formula(layout: str) -> None:
    tensors = make(layout)
    for own, expected in zip(gradients(fused, layout, tensors), gradients(plain, layout, tensors), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("wanted", list(product([False, True], repeat=5)))
def test_only_the_gradients_asked_for(wanted: tuple[bool, ...]) -> None:
    x, weight, bias, *factors = make("two slices")
    expected = gradients(plain, "two slices", (x, weight, bias, *factors))[1:]
    leaves = [t.clone().requires_grad_(own) for t, own in zip((x, *factors), wanted, strict=True)]
    y = fused("two slices", leaves[0], weight, bias, *leaves[1:])
    assert y.requires_grad == any(wanted)
    if any(wanted):
        torch.manual_seed(1)
        y.backward(torch.randn(y.shape).to(y.dtype))
    for leaf, own, right in zip(leaves, wanted, expected, strict=True):
        assert (leaf.grad is not None) == own
        if own:
            torch.testing.assert_close(leaf.grad, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["whole", "two slices"])
def test_equals_the_eager_sum(layout: str, dtype: torch.dtype) -> None:
    x, weight, bias, *factors = make(layout, dtype, torch.float32)
    y = F.linear(x, weight, bias)
    for update in updates(layout, tuple(factors)):
        rows = update.rows or slice(None)
        part = low_rank_add(y[..., rows], x, update.a, update.b, update.scale)
        y = y.clone().index_copy(-1, torch.arange(OUT)[rows], part)
    own = gradients(fused, layout, (x, weight, bias, *factors))
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.06}
    torch.testing.assert_close(own[0], y, **tolerance)
    assert own[0].dtype == own[1].dtype == dtype
    assert {gradient.dtype for gradient in own[2:]} == {torch.float32}


def hard(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
    return low_rank_linear(x, weight, bias, hard_updates(name, tensors))


def hard_updates(name: str, tensors: Sequence[Tensor]) -> list[Update]:
    found, rest = [], iter(tensors)
    for index, options in enumerate(HARD[name]):
        own = {"scale": 1.5 - index, "seed": 5 + index} | options
        ratio = {"ratio": next(rest)} if own.pop("rescaled", False) else {}
        found.append(Update(next(rest), next(rest), **ratio, **own))
    return found


def hard_tensors(name: str) -> list[Tensor]:
    """Return x, weight, bias and then perhaps a ratio, a and b of each update."""
    torch.manual_seed(0)
    made = [torch.randn(shape, dtype=torch.float64) for shape in ((2, 5, WIDTH), (OUT, WIDTH), (OUT,))]
    for options in HARD[name]:
        rows = len(indices(options.get("rows", slice(None)), OUT))
        shapes = [(rows,)] * bool(options.get("rescaled")) + [(2, WIDTH), (rows, 2)]
        made += [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return made


def step_by_step(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, *tensors: Tensor) -> Tensor:
    """The formula, one update after the other."""
    y = x @ weight.T
    for update in hard_updates(name, tensors):
        rows = update.rows or slice(None)
        mask = keep_mask(x.flatten(0, 1).shape, update.dropout, update.seed, x.device).view(x.shape)
        read = x * mask / kept_share(update.dropout) if update.dropout else x
        part = take(y, rows, -1) + update.scale * (read @ update.a.T) @ update.b.T
        y = put(y, rows, part if update.ratio is None else part * update.ratio, -1)
    return y if bias is None else y + bias


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("biased", [True, False])
def test_masks_ratios_and_scattered_rows_are_the_formula(name: str, biased: bool) -> None:
    x, weight, bias, *tensors = hard_tensors(name)
    leaves = [tensor.requires_grad_() for tensor in (x, *tensors)]
    grad = torch.randn(2, 5, OUT, dtype=torch.float64)
    outputs = [f(name, x, weight, bias if biased else None, *tensors) for f in (hard, step_by_step)]
    torch.testing.assert_close(*outputs)
    own, right = (torch.autograd.grad(y, leaves, grad) for y in outputs)
    for gradient, expected in zip(own, right, strict=True):
        torch.testing.assert_close(gradient, expected)
    for leaf, expected in zip(leaves, right, strict=True):
        alone = hard(name, *_only(leaf, x), weight, bias if biased else None, *_only(leaf, *tensors))
        torch.testing.assert_close(torch.autograd.grad(alone, leaf, grad)[0], expected)


def _only(wanted: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [leaf if leaf is wanted else leaf.detach() for leaf in leaves]


@pytest.mark.parametrize("name", HARD)
def test_gradients_of_masks_and_ratios_and_theirs(name: str) -> None:
    x, weight, bias, *tensors = hard_tensors(name)
    leaves = [tensor.requires_grad_() for tensor in (x, *tensors)]

    def function(x: Tensor, *tensors: Tensor) -> Tensor:
        return hard(name, x, weight, bias, *tensors)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("name", HARD)
def test_no_mask_and_no_product_is_kept(name: str) -> None:
    x, weight, bias, *tensors = hard_tensors(name)
    tensors = [tensor.requires_grad_() for tensor in tensors]
    saved = kept(lambda: hard(name, x, weight, bias, *tensors))
    assert {tensor.data_ptr() for tensor in saved} == {tensor.data_ptr() for tensor in (x, weight, *tensors)}


def kept(function: Callable[[], Tensor]) -> list[Tensor]:
    tensors: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keeps_x_and_the_factors_by_reference(dtype: torch.dtype) -> None:
    x, weight, bias, *factors = make("two slices", dtype, torch.float32)
    leaves = [tensor.requires_grad_() for tensor in factors]
    x = (x.requires_grad_() * 1).detach()
    saved = kept(lambda: fused("two slices", x, weight, bias, *leaves))
    own = {tensor.data_ptr() for tensor in (x, weight, *leaves)}
    assert {tensor.data_ptr() for tensor in saved} == own


def test_with_fixed_a_it_keeps_the_product_in_the_place_of_x() -> None:
    x, weight, bias, *factors = make("two slices")
    leaves = [tensor.requires_grad_(index % 2 == 1) for index, tensor in enumerate(factors)]
    saved = kept(lambda: fused("two slices", x, weight, bias, *leaves))
    own = {tensor.data_ptr() for tensor in (weight, *leaves)}
    (product,) = [tensor for tensor in saved if tensor.data_ptr() not in own]
    torch.testing.assert_close(product, torch.cat([factors[0], factors[2]]) @ x.flatten(0, 1).T)

    def function(x: Tensor, *ups: Tensor) -> Tensor:
        return fused("two slices", x, weight, bias, factors[0], ups[0], factors[2], ups[1])

    inputs = [tensor.requires_grad_() for tensor in (x, factors[1], factors[3])]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_with_fixed_a_and_dropout_it_keeps_the_product_alone() -> None:
    x, weight, bias, a, b = hard_tensors("dropout")
    inputs = [x.requires_grad_(), b.requires_grad_()]

    def function(x: Tensor, b: Tensor) -> Tensor:
        return hard("dropout", x, weight, bias, a, b)

    own = {tensor.data_ptr() for tensor in (weight, a, b)}
    assert [tuple(t.shape) for t in kept(lambda: function(*inputs)) if t.data_ptr() not in own] == [(2, 10)]
    assert torch.autograd.gradcheck(function, inputs)


def test_with_fixed_factors_it_keeps_nothing_as_large_as_x() -> None:
    x, weight, bias, *factors = make("whole", torch.float32)
    x = torch.randn(40, WIDTH, requires_grad=True)
    saved = kept(lambda: fused("whole", x, weight, bias, *factors))
    assert x.data_ptr() not in {tensor.data_ptr() for tensor in saved}
    (gradient,) = torch.autograd.grad(fused("whole", x, weight, bias, *factors).sum(), x)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain("whole", x, weight, bias, *factors).sum(), x)[0])


def test_autocast_computes_and_keeps_half_precision() -> None:
    x, weight, bias, *factors = make("two slices", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        own = gradients(fused, "two slices", (x, weight, bias, *factors))
        saved = kept(lambda: fused("two slices", x, weight, bias, *(f.clone().requires_grad_() for f in factors)))
        y = fused("two slices", x, weight, bias, *(f.requires_grad_() for f in factors))
    y.float().sum().backward()
    right = gradients(plain, "two slices", (x, weight, bias, *factors))
    assert own[0].dtype == torch.bfloat16
    assert [tensor.dtype for tensor in saved if tensor.shape == x.shape] == [torch.bfloat16]
    for gradient, expected in zip(own[1:], right[1:], strict=True):
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, expected, rtol=0.05, atol=0.15)


def test_checkpointing_changes_nothing() -> None:
    def checkpointed(layout: str, *tensors: Tensor) -> Tensor:
        y = checkpoint(lambda *own: fused(layout, *own), *tensors, use_reentrant=False)
        assert isinstance(y, Tensor)
        return y

    own = gradients(checkpointed, "two slices", make("two slices"))
    for gradient, expected in zip(own, gradients(fused, "two slices", make("two slices")), strict=True):
        assert torch.equal(gradient, expected)


def test_per_sample_gradients_by_function_transforms() -> None:
    x, weight, bias, a, b = make("whole")

    def loss(a: Tensor, b: Tensor, sample: Tensor) -> Tensor:
        return fused("whole", sample, weight, bias, a, b).square().sum()

    own = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(None, None, 0))(a, b, x)
    for i, sample in enumerate(x):
        for batched, single in zip(own, torch.func.grad(loss, argnums=(0, 1))(a, b, sample), strict=True):
            torch.testing.assert_close(batched[i], single)


def test_which_calls_are_fused() -> None:
    x, layer = torch.randn(2, 3), nn.Linear(3, 4)
    assert not fusible(layer, x)
    layer.requires_grad_(False)
    assert fusible(layer, x)
    assert not fusible(layer, x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert fusible(layer.bfloat16(), x)
    assert not fusible(nn.ReLU(), x)
    layer = nn.Linear(3, 4)
    layer.weight.requires_grad_(False)
    assert not fusible(layer, x)


class Tiny(nn.Module):
    """Two linear layers, the second one of a class with a forward of its own."""

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), self.Doubled(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def adapted(*methods: mmpeft.Method) -> tuple[Tiny, list[nn.Parameter]]:
    torch.manual_seed(0)
    model = Tiny().double()
    parameters = mmpeft.adapt(model, list(methods), dtype=torch.float64).parameters()
    for parameter in parameters:
        nn.init.normal_(parameter)
    return model, parameters


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_grafted_model_equals_its_formula_beside_other_edits(order: tuple[int, int]) -> None:
    methods = (mmpeft.LoRA(rank=2, alpha=3, targets="all"), mmpeft.SSF())
    model, _ = adapted(*(methods[i] for i in order))
    x = torch.randn(5, 6, dtype=torch.float64)
    fast, compiled = model(x), torch.compile(model, backend="eager", fullgraph=True)(x)
    torch.testing.assert_close(fast, compiled)


def test_compiled_gradients_equal_the_fused_ones() -> None:
    model, parameters = adapted(mmpeft.LoRA(rank=2, targets="all"))
    x = torch.randn(5, 6, dtype=torch.float64)
    fast = torch.autograd.grad(model(x).square().sum(), parameters)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for own, expected in zip(torch.autograd.grad(compiled(x).square().sum(), parameters), fast, strict=True):
        torch.testing.assert_close(own, expected)


def test_dropout_acts_in_training_only() -> None:
    model, _ = adapted(mmpeft.LoRA(rank=2, dropout=0.5, targets="all"))
    x = torch.randn(5, 6, dtype=torch.float64)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
