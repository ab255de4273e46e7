"""The low-rank update ``y + s B A x`` of a linear layer."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.kernels.plain import is_plain
from mmpeft.kernels.recompute import note_linear

Layout = tuple[tuple[float, slice], ...]


@dataclass(frozen=True, eq=False)
class Update:
    """``scale * B A`` with A ``a`` (rank, in) and B ``b`` (rows, rank), on all rows of a weight or on a slice."""

    a: Tensor
    b: Tensor
    scale: float
    rows: slice | None = None


def low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``y + scale * (x a^T) b^T`` for y (..., out), x (..., in), a (rank, in), b (out, rank).

    The factors are cast to x's precision; x is never cast or copied.
    """
    return y + F.linear(F.linear(x, a.to(x.dtype)) * scale, b.to(x.dtype))


def fusible(host: nn.Module, x: Tensor) -> bool:
    """Whether ``low_rank_linear`` may compute this call: a plain, frozen linear layer, outside the compiler."""
    weight = host._parameters.get("weight")
    return (
        is_plain(weight)
        and not any(own is not None and own.requires_grad for own in host._parameters.values())
        and is_plain(x)
        and (x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type))
        and not torch.compiler.is_compiling()
    )


def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, updates: Sequence[Update]) -> Tensor:
    """Return ``x weight^T + bias`` with every update added to its rows; weight (out, in) and bias (out) are frozen.

    The backward pass keeps x and the factors by reference and nothing else: no product of them, no copy in another
    precision. Where no A is trained it keeps A x in the place of x (LoRA-FA). It computes in x's precision (autocast's,
    where that is on); gradients have the factors' own.
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    layout = tuple((update.scale, update.rows or slice(None)) for update in updates)
    factors = [factor for update in updates for factor in (update.a, update.b)]
    y: Tensor = _LowRankLinear.apply(x, weight, bias, layout, *factors)[0]
    note_linear(y, _again, (x, weight, bias, layout, *factors))
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
        x: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout, *factors: Tensor
    ) -> tuple[Tensor, Tensor]:
        y = F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
        flat, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        hidden = _stacked(factors[::2], x.dtype) @ flat.T
        for (scale, rows), ranks, b in zip(layout, _ranks(factors), factors[1::2], strict=True):
            out[:, rows].addmm_(hidden[ranks].T, b.to(x.dtype).T, alpha=scale)
        return y, hidden

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, _, ctx.layout, *factors = inputs
        ctx.set_materialize_grads(False)
        ctx.fixed, ctx.shape = not any(ctx.needs_input_grad[4::2]), x.shape
        ctx.save_for_backward(output[1] if ctx.fixed else x, weight, *factors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        kept, weight, *factors = ctx.saved_tensors
        need_x, _, _, _, *need = ctx.needs_input_grad
        y, by_hidden = grads
        grad = (kept.new_zeros(*ctx.shape[:-1], len(weight)) if y is None else y).reshape(-1, len(weight))
        a, ups = _stacked(factors[::2], kept.dtype), [b.to(kept.dtype).T for b in factors[1::2]]
        back = _joined([_scaled(s, b @ grad[:, rows].T) for b, (s, rows) in zip(ups, ctx.layout, strict=True)])
        back = back if by_hidden is None else back + by_hidden
        grad_x = (grad @ weight.to(kept.dtype)).addmm_(back.T, a).view(ctx.shape) if need_x else None
        by_a = back @ kept.reshape(-1, kept.shape[-1]) if any(need[::2]) else None
        hidden = None
        if any(need[1::2]):
            hidden = kept if ctx.fixed else a @ kept.reshape(-1, kept.shape[-1]).T
        found: list[Tensor | None] = []
        for (scale, rows), ranks in zip(ctx.layout, _ranks(factors), strict=True):
            found.append(None if by_a is None else by_a[ranks])
            found.append(None if hidden is None else _scaled(scale, hidden[ranks] @ grad[:, rows]).T)
        wanted = zip(found, factors, need, strict=True)
        return grad_x, None, None, None, *(g.to(f.dtype) if g is not None and own else None for g, f, own in wanted)


_ANY = inspect.Signature([inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)])
_LowRankLinear.forward.__signature__ = _ANY  # type: ignore[attr-defined]
"""torch binds the arguments at every call; to a signature found anew each time, that takes as long as a small layer."""


def _stacked(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    return _joined([a.to(dtype) for a in downs])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _scaled(scale: float, x: Tensor) -> Tensor:
    return x if scale == 1.0 else scale * x


def _ranks(factors: Sequence[Tensor]) -> list[slice]:
    ends = list(accumulate(len(a) for a in factors[::2]))
    return [slice(end - len(a), end) for end, a in zip(ends, factors[::2], strict=True)]
