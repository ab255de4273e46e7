"""The low-rank update ``y + s B A x`` of a linear layer, computed along with the frozen layer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.kernels.plain import cast, computed_in, is_plain
from mmpeft.kernels.private_names import is_transformed
from mmpeft.kernels.quantized import computes_in, dense, is_quantized, linear, shape_of
from mmpeft.kernels.recompute import note_linear, unwatched
from mmpeft.kernels.rows import take
from mmpeft.kernels.updates import ALL, Group, Term, Update, UpdateLayout, arranged, joined, scaled


def low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``y + scale * (x a^T) b^T`` for y (..., out), x (..., in), a (rank, in), b (out, rank).

    The factors are cast to x's precision; x is never cast or copied.
    """
    return y + F.linear(F.linear(x, a.to(x.dtype)) * scale, b.to(x.dtype))


def fusible(host: nn.Module, x: Tensor, weight: str = "weight") -> bool:
    """Whether a fused function may compute this call: of a frozen layer, plain or quantised, outside the compiler."""
    frozen = host._parameters.get(weight)
    if frozen is None or not is_plain(x) or torch.compiler.is_compiling():
        return False
    with unwatched(*host._parameters.values()):
        if any(each is not None and each.requires_grad for each in host._parameters.values()):
            return False
        if is_quantized(frozen):
            return not is_transformed() and computes_in(host, frozen) == computed_in(x)
        return (
            is_plain(frozen) and frozen.is_floating_point() and (x.dtype == frozen.dtype or computed_in(x) != x.dtype)
        )


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, updates: Sequence[Update]) -> Tensor:
    """Return ``x weight^T + bias`` with every update applied to its rows; weight (out, in) and bias (out) are frozen.

    The backward pass keeps x and the factors by reference and nothing else: no product of them, no mask, no dense copy
    of a quantised weight, no copy in another precision. Where no A is trained it keeps A x in the place of x (LoRA-FA).
    It computes in x's precision (autocast's, where that is on); gradients have the factors' own. A ratio must be that
    of the first update on its rows; its gradient takes one product more, ``g^T x``, of the size of the weight.
    """
    x = cast(x)
    with unwatched(x, weight):
        layout, tensors = arranged(updates)
        inputs = (x, weight, bias, layout, *tensors)
        y: Tensor = _LowRankLinear.apply(*inputs)[0]
        note_linear(y, _again, inputs)
    return y


def low_rank_without_graph(x: Tensor, weight: Tensor, bias: Tensor | None, update: Update) -> Tensor:
    """Return the same for one update without dropout and ratio, without a graph.

    x, weight and bias have one precision. Factors of the same are used by the same operations to the bit; wider ones
    as they are: of one row in bfloat16 on a CPU that takes 11 us at 512 -> 512, two casts and the products 22. A step
    of decoding is so short that an autograd.Function and a layout take as long as what they compute.
    """
    y, a, b = F.linear(x, weight, bias), update.a, update.b
    flat, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
    part = out if update.rows is None else take(out, update.rows, -1)
    if a.dtype == b.dtype == x.dtype:
        part.addmm_((a @ flat.T).T, b.T, alpha=update.scale)
    else:
        part.add_(F.linear(F.linear(flat.to(a.dtype), a), b.to(a.dtype)), alpha=update.scale)
    return y


def _again(*inputs: Any) -> Tensor:
    return _LowRankLinear.forward(*inputs)[0]


class _LowRankLinear(torch.autograd.Function):
    """One read of x for all updates; their sums are accumulated in place in the output and in x's gradient.

    A x is an output too, for itself and for gradients of gradients where it is kept in the place of x.
    All A lie on top of each other, and thin matrices are (ranks, n) for n rows of x: a third of the time of (n, ranks)
    on a CPU.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, layout: UpdateLayout, *tensors: Any
    ) -> tuple[Tensor, Tensor]:
        y = linear(x, weight, None if layout.rescaled else bias)
        flat, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        hidden = joined([_read(flat, group, tensors[::3]) for group in layout.groups])
        for each in zip(layout.terms, tensors[1::3], tensors[2::3], strict=True):
            _add(out, each[0], hidden, *each[1:])
        if layout.rescaled and bias is not None:
            out.add_(bias)
        return y, hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, layout, *tensors = inputs
        ctx.layout, need = layout, ctx.needs_input_grad
        ctx.set_materialize_grads(False)
        ctx.fixed, ctx.shape = not (any(need[4::3]) or any(need[6::3])), x.shape
        ctx.packed = weight if is_quantized(weight) else None
        ctx.save_for_backward(output[1] if ctx.fixed else x, None if ctx.packed is weight else weight, *tensors)

    @staticmethod
    def backward(ctx: Any, by_y: Tensor | None, by_hidden: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, weight, *tensors = ctx.saved_tensors
        layout, need, dtype = ctx.layout, ctx.needs_input_grad, kept.dtype
        weight = ctx.packed if weight is None else weight
        width = shape_of(weight)[0]
        grad = (kept.new_zeros(*ctx.shape[:-1], width) if by_y is None else by_y).reshape(-1, width)
        if layout.groups[0] is ALL and by_hidden is None and all(need[6::3]):
            return _by_whole(kept, dense(weight).to(dtype), layout, tensors, need, grad)
        parts = [term.part(grad) for term in layout.terms]
        by_term = zip(layout.terms, parts, tensors[1::3], tensors[2::3], strict=True)
        back = joined([_back(*each, dtype) for each in by_term])
        back = back if by_hidden is None else back + by_hidden
        flat, shape = None if ctx.fixed else kept.reshape(-1, kept.shape[-1]), torch.Size((len(grad), ctx.shape[-1]))
        need_a, need_hidden = any(need[4::3]), any(need[5::3]) or any(need[6::3])
        hidden, by_a, through = [kept] if ctx.fixed else [], [], []
        for group in layout.groups:
            a, by_thin, mask = group.stacked(tensors[::3], dtype), group.thin(back), group.mask(grad, shape)
            through.append((by_thin.T, a, mask))
            if flat is not None:
                entering = flat if mask is None else flat * mask
                hidden += [a @ entering.T] if need_hidden else []
                by_a += [by_thin @ entering] if need_a else []
        if need[0] or any(need[6::3]):
            weight = dense(weight).to(dtype)
        by_x = None
        if need[0]:
            by_x = _rescaled(grad, layout, tensors[2::3]) @ weight
            for by_thin, a, mask in through:
                by_x = by_x.addmm_(by_thin, a) if mask is None else by_x.add_((by_thin @ a) * mask)
            by_x = by_x.view(ctx.shape)
        by_all, thin = (joined(products) if products else None for products in (by_a, hidden))
        return by_x, None, None, None, *_by_tensors(layout, tensors, need, parts, by_all, thin, flat, weight)


_ANY = inspect.Signature([inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)])
_forward: Any = _LowRankLinear.forward
_forward.__signature__ = _ANY
"""torch binds the arguments at every call; to a signature found anew each time, that takes as long as a small layer."""


def _read(flat: Tensor, group: Group, downs: Sequence[Tensor]) -> Tensor:
    """Return the thin products (ranks, n) of a group."""
    mask = group.mask(flat)
    return group.stacked(downs, flat.dtype) @ (flat if mask is None else flat * mask).T


def _add(out: Tensor, term: Term, hidden: Tensor, b: Tensor, ratio: Tensor | None) -> None:
    """Add a term to its rows of the output, in place, and rescale them."""
    part, thin, up = term.place(out), term.thin(hidden).T, b.to(out.dtype).T
    if part.ndim == 2:
        part.addmm_(thin, up, alpha=term.scale)
    else:
        part.add_((thin @ up).view_as(part), alpha=term.scale)
    if ratio is not None:
        part.mul_(ratio.view(part.shape[1:]))


def _back(term: Term, grad: Tensor, b: Tensor, ratio: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the gradient of a term's thin product, (rank, n)."""
    b = b if ratio is None else b * ratio[:, None]
    return scaled(term.scale, b.to(dtype).T @ grad.T)


def _rescaled(grad: Tensor, layout: UpdateLayout, ratios: Sequence[Tensor | None]) -> Tensor:
    """Return the output's gradient in front of all ratios."""
    if not layout.rescaled:
        return grad
    grad = grad.clone()
    for term, ratio in zip(layout.terms, ratios, strict=True):
        if ratio is not None:
            part = term.place(grad)
            part.mul_(ratio.view(part.shape[1:]))
    return grad


def _by_whole(
    x: Tensor, weight: Tensor, layout: UpdateLayout, tensors: Sequence[Any], need: Sequence[bool], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """Return all gradients where each term has a ratio: ``g^T x``, which that takes, gives the others too."""
    flat = x.reshape(-1, x.shape[-1])
    gradients: list[Tensor | None] = []
    for i, term in enumerate(layout.terms):
        (a, b, ratio), (need_a, need_b, _) = tensors[3 * i : 3 * i + 3], need[4 + 3 * i : 7 + 3 * i]
        whole, rows = term.part(grad).T @ flat, weight if term.rows is None else take(weight, term.rows, 0)
        by_b = scaled(term.scale, whole @ a.to(whole.dtype).T)
        by_ratio = (whole * rows).sum(1, dtype=ratio.dtype) + (by_b * b).sum(1, dtype=ratio.dtype)
        by_a = scaled(term.scale, (b * ratio[:, None]).to(whole.dtype).T @ whole) if need_a else None
        wanted = zip((by_a, by_b * ratio[:, None] if need_b else None, by_ratio), (a, b, ratio), strict=True)
        gradients += [None if gradient is None else gradient.to(tensor.dtype) for gradient, tensor in wanted]
    if not need[0]:
        return None, None, None, None, *gradients
    by_x = _rescaled(grad, layout, tensors[2::3]) @ weight
    for term, a, b, ratio in zip(layout.terms, tensors[::3], tensors[1::3], tensors[2::3], strict=True):
        by_x = by_x.addmm_(_back(term, term.part(grad), b, ratio, x.dtype).T, a.to(x.dtype))
    return by_x.view(x.shape), None, None, None, *gradients


def _by_tensors(
    layout: UpdateLayout,
    tensors: Sequence[Any],
    need: Sequence[bool],
    parts: Sequence[Tensor],
    by_a: Tensor | None,
    hidden: Tensor | None,
    flat: Tensor | None,
    weight: Tensor,
) -> list[Tensor | None]:
    """Return the gradients of a, b and ratio of each term; that of a ratio c is the row sums of ``g * u``.

    As u is ``x W^T + s h B^T``, they are those of ``W * g^T x`` and ``B * s g^T h``: u is neither kept nor made.
    """
    gradients: list[Tensor | None] = []
    for i, (term, part) in enumerate(zip(layout.terms, parts, strict=True)):
        a, b, ratio = tensors[3 * i : 3 * i + 3]
        need_a, need_b, need_ratio = need[4 + 3 * i : 7 + 3 * i]
        by_b = by_ratio = None
        if hidden is not None and (need_b or need_ratio):
            by_b = scaled(term.scale, term.thin(hidden) @ part).T
        if by_b is not None and flat is not None and need_ratio:
            whole = (part.T @ flat) * take(weight, term.rows or slice(None), 0)
            by_ratio = whole.sum(1, dtype=ratio.dtype) + (by_b * b).sum(1, dtype=ratio.dtype)
        if by_b is not None and ratio is not None:
            by_b = by_b * ratio[:, None]
        gradients += (
            term.thin(by_a).to(a.dtype) if by_a is not None and need_a else None,
            by_b.to(b.dtype) if by_b is not None and need_b else None,
            by_ratio,
        )
    return gradients
