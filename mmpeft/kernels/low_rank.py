"""The low-rank update ``y + s B A x`` of a linear layer, computed along with the frozen layer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.kernels.dropout import seedable
from mmpeft.kernels.plain import is_plain
from mmpeft.kernels.quantized import computes_in, dense, is_quantized, linear
from mmpeft.kernels.recompute import note_linear
from mmpeft.kernels.rows import spread, take
from mmpeft.kernels.updates import Group, Layout, Term, Update, arranged, joined, scaled, stacked


def low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``y + scale * (x a^T) b^T`` for y (..., out), x (..., in), a (rank, in), b (out, rank).

    The factors are cast to x's precision; x is never cast or copied.
    """
    return y + F.linear(F.linear(x, a.to(x.dtype)) * scale, b.to(x.dtype))


def fusible(host: nn.Module, x: Tensor, weight: str = "weight") -> bool:
    """Whether a fused function may compute this call: of a frozen layer, plain or quantised, outside the compiler."""
    own = host._parameters.get(weight)
    if own is None or any(each is not None and each.requires_grad for each in host._parameters.values()):
        return False
    if not is_plain(x) or torch.compiler.is_compiling():
        return False
    if is_quantized(own):
        return seedable(x) and computes_in(host, own) == _computed(x)
    return is_plain(own) and own.is_floating_point() and (x.dtype == own.dtype or _computed(x) != x.dtype)


def _computed(x: Tensor) -> torch.dtype:
    """The precision to compute in: x's own, or autocast's where that is on."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else x.dtype


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, updates: Sequence[Update]) -> Tensor:
    """Return ``x weight^T + bias`` with every update applied to its rows; weight (out, in) and bias (out) are frozen.

    The backward pass keeps x and the factors by reference and nothing else: no product of them, no mask, no dense copy
    of a quantised weight, no copy in another precision. Where no A is trained it keeps A x in the place of x (LoRA-FA).
    It computes in x's precision (autocast's, where that is on); gradients have the factors' own. A ratio must be that
    of the first update on its rows; its gradient takes one product more, ``g^T x``, of the size of the weight.
    """
    layout, tensors = arranged(updates)
    inputs = (x.to(_computed(x)), weight, bias, layout, *tensors)
    y: Tensor = _LowRankLinear.apply(*inputs)[0]
    note_linear(y, _again, inputs)
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
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout, *tensors: Any) -> tuple[Tensor, Tensor]:
        late = any(ratio is not None for ratio in tensors[2::3])
        y = linear(x, weight, None if late else bias)
        flat, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        hidden = joined([_thin(flat, group, tensors[::3]) for group in layout[1]])
        for each in zip(layout[0], tensors[1::3], tensors[2::3], strict=True):
            _add(out, each[0], hidden, *each[1:])
        if late and bias is not None:
            out.add_(bias)
        return y, hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, ctx.layout, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.fixed, ctx.shape = not any(ctx.needs_input_grad[4::3]) and not any(ctx.needs_input_grad[6::3]), x.shape
        ctx.packed = weight if is_quantized(weight) else None
        ctx.save_for_backward(output[1] if ctx.fixed else x, None if ctx.packed is weight else weight, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, weight, *tensors = ctx.saved_tensors
        (terms, groups), need = ctx.layout, ctx.needs_input_grad
        dense_weight = dense(ctx.packed if weight is None else weight).to(kept.dtype)
        y, by_hidden = grads
        width = len(dense_weight)
        grad = (kept.new_zeros(*ctx.shape[:-1], width) if y is None else y).reshape(-1, width)
        parts = [take(grad, term.rows, -1) for term in terms]
        back = joined(
            [_back(*each, kept.dtype) for each in zip(terms, parts, tensors[1::3], tensors[2::3], strict=True)]
        )
        back = back if by_hidden is None else back + by_hidden
        by_x = _rescaled(grad, terms, tensors[2::3]) @ dense_weight if need[0] else None
        flat = None if ctx.fixed else kept.reshape(-1, kept.shape[-1])
        downs, hidden = [], [kept] if ctx.fixed else []
        for group in groups:
            mask = None if ctx.fixed and by_x is None else group.mask(grad, torch.Size((len(grad), ctx.shape[-1])))
            a = stacked(tensors[::3][group.terms], kept.dtype)
            if by_x is not None:
                by_x = _added(by_x, back[group.ranks].T, a, mask)
            if flat is not None:
                entering = flat if mask is None else flat * mask
                downs += [back[group.ranks] @ entering] if any(need[4::3]) else []
                hidden += [a @ entering.T] if any(need[5::3]) or any(need[6::3]) else []
        by_a, thin = (joined(each) if each else None for each in (downs, hidden))
        found = _by_tensors(ctx, parts, tensors, by_a, thin, flat, dense_weight)
        return None if by_x is None else by_x.view(ctx.shape), None, None, None, *found


_ANY = inspect.Signature([inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)])
_LowRankLinear.forward.__signature__ = _ANY  # type: ignore[attr-defined]
"""torch binds the arguments at every call; to a signature found anew each time, that takes as long as a small layer."""


def _thin(flat: Tensor, group: Group, downs: Sequence[Tensor]) -> Tensor:
    mask = group.mask(flat)
    return stacked(downs[group.terms], flat.dtype) @ (flat if mask is None else flat * mask).T


def _add(out: Tensor, term: Term, hidden: Tensor, b: Tensor, ratio: Tensor | None) -> None:
    """Add a term to its rows of the output, in place, and rescale them."""
    part, thin, up = spread(out, term.rows, -1), hidden[term.ranks].T, b.to(out.dtype).T
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


def _rescaled(grad: Tensor, terms: Sequence[Term], ratios: Sequence[Tensor | None]) -> Tensor:
    """Return the output's gradient in front of all ratios."""
    if all(ratio is None for ratio in ratios):
        return grad
    grad = grad.clone()
    for term, ratio in zip(terms, ratios, strict=True):
        if ratio is not None:
            part = spread(grad, term.rows, -1)
            part.mul_(ratio.view(part.shape[1:]))
    return grad


def _added(by_x: Tensor, back: Tensor, a: Tensor, mask: Tensor | None) -> Tensor:
    return by_x.addmm_(back, a) if mask is None else by_x.add_((back @ a) * mask)


def _by_tensors(
    ctx: Any,
    parts: Sequence[Tensor],
    tensors: Sequence[Any],
    by_a: Tensor | None,
    hidden: Tensor | None,
    flat: Tensor | None,
    weight: Tensor,
) -> Iterator[Tensor | None]:
    """Yield the gradients of a, b and ratio of each term; that of a ratio c is the row sums of ``g * u``.

    As u is ``x W^T + s h B^T``, they are those of ``W * g^T x`` and ``B * s g^T h``: u is neither kept nor made.
    """
    for i, (term, part) in enumerate(zip(ctx.layout[0], parts, strict=True)):
        (a, b, ratio), (need_a, need_b, need_ratio) = tensors[3 * i : 3 * i + 3], ctx.needs_input_grad[4 + 3 * i :][:3]
        yield by_a[term.ranks].to(a.dtype) if need_a and by_a is not None else None
        by_b = scaled(term.scale, hidden[term.ranks] @ part).T if hidden is not None else None
        if by_b is None or not need_b:
            yield None
        else:
            yield (by_b if ratio is None else by_b * ratio[:, None]).to(b.dtype)
        if by_b is None or flat is None or not need_ratio:
            yield None
        else:
            whole = (part.T @ flat) * take(weight, term.rows, 0)
            yield whole.sum(1, dtype=ratio.dtype) + (by_b * b).sum(1, dtype=ratio.dtype)
