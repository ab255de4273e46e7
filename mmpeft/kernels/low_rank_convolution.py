"""Low-rank updates ``y + s B * (A * x)`` of a convolution, computed along with the frozen convolution."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.kernels.low_rank import fusible
from mmpeft.kernels.plain import cast
from mmpeft.kernels.private_names import is_transformed
from mmpeft.kernels.quantized import is_quantized
from mmpeft.kernels.recompute import unwatched
from mmpeft.kernels.updates import ALL, Term, Update, UpdateLayout, arranged, scaled

How = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Stride, padding and dilation."""


def fusible_convolution(host: nn.Module, x: Tensor) -> bool:
    """Whether `low_rank_convolution` may compute this call: a plain, frozen convolution of a batch, zero-padded."""
    if not isinstance(host, nn.Conv2d) or x.ndim != 4 or host.padding_mode != "zeros" or isinstance(host.padding, str):
        return False
    return host.groups == 1 and fusible(host, x) and not is_quantized(host.weight) and not is_transformed()


def low_rank_convolution(host: nn.Conv2d, x: Tensor, updates: Sequence[Update]) -> Tensor:
    """Return the convolution of x (batch, in, height, width) with every update; A is as large as the kernel, B 1 x 1.

    The backward pass keeps x and the factors by reference, and no mask; see `low_rank_linear`. It also keeps the thin
    product A * x where the weight is not merged: to make that again would take 7 to 35 % of a step of the layer.
    """
    x = cast(x)
    with unwatched(x, host.weight):
        layout, tensors = arranged(updates)
        how = (host.stride, host.padding, host.dilation)
        merge = layout.groups[0] is ALL and cheaper_merged(host, x)
        y: Tensor = _LowRankConvolution.apply(x, host.weight, host.bias, how, merge, layout, *tensors)
    return y


def worth_fusing(host: nn.Module, x: Tensor, updates: Sequence[Update]) -> bool:
    """Whether `low_rank_convolution` saves anything: a mask, the output that a ratio scales, or time.

    Without any of these it would keep as much, and on small images take 0.1 ms longer.
    """
    assert isinstance(host, nn.Conv2d)
    return any(update.dropout or update.ratio is not None for update in updates) or cheaper_merged(host, x)


def cheaper_merged(host: nn.Conv2d, x: Tensor) -> bool:
    """Whether one convolution by ``W + s B A`` is faster than three, and as exact: of many places, in float32.

    Measured on one CPU core, rank 8, forward and backward, merged over step by step: where the rule merges, 0.83 to
    1.00 in 8 shapes of 64 to 640 channels and 14 x 14 to 64 x 64 places; elsewhere 0.98 to 1.74 in 6 shapes. For
    linear layers the sum is never made: with it a model's step took 0.97 to 1.01 of the time on one machine, and 1.07
    to 1.13 on another.
    """
    if host.weight.dtype not in (torch.float32, torch.float64) or x.dtype != host.weight.dtype:
        return False
    places = x.numel() // host.in_channels // (host.stride[0] * host.stride[1])
    return places * (host.in_channels + host.out_channels) >= 2 * host.weight.numel()


class _LowRankConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        how, merge, layout, *tensors = rest
        ctx.how, ctx.merge, ctx.layout, frozen = how, merge, layout, weight
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if merge:
            ctx.save_for_backward(x, frozen, None, *tensors)
            return F.conv2d(x, _merged(weight, layout, tensors), bias, *how)
        y = F.conv2d(x, weight, None if layout.rescaled else bias, *how)
        hidden = torch.cat([_read(x, how, *each) for each in _groups(x, layout, tensors)], 1)
        ctx.save_for_backward(x, frozen, hidden, *tensors)
        for term, b, ratio in zip(layout.terms, tensors[1::3], tensors[2::3], strict=True):
            y.add_(F.conv2d(_thin(term, hidden), b.to(x.dtype)), alpha=term.scale)
            if ratio is not None:
                y.mul_(ratio[:, None, None])
        return y if bias is None or not layout.rescaled else y.add_(bias[:, None, None])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, thin, *tensors = ctx.saved_tensors
        how, layout, need = ctx.how, ctx.layout, ctx.needs_input_grad
        weight = weight.to(x.dtype)
        terms = list(zip(layout.terms, tensors[1::3], tensors[2::3], strict=True))
        back = torch.cat([_back(grad, *each) for each in terms], 1)
        parts: list[Any] = []
        by_a, hidden, again = [], [], thin is None or torch.is_grad_enabled()
        for (a, mask), group in zip(_groups(x, layout, tensors), layout.groups, strict=True):
            by_hidden = back if group.ranks is None else back[:, group.ranks]
            entering = x if mask is None else x * mask
            by_entering, by_down = _gradients(by_hidden, entering, a, how, need[0] and not ctx.merge, any(need[6::3]))
            parts += [] if by_entering is None else [by_entering if mask is None else by_entering * mask]
            by_a += [] if by_down is None else [by_down]
            hidden += [F.conv2d(entering, a, None, *how)] if again else []
        if need[0]:
            whole = _merged(weight, layout, tensors) if ctx.merge else weight
            by_y = grad if ctx.merge else _rescaled(grad, terms)
            parts.append(_gradients(by_y, x, whole, how, True, False)[0])
        by_x = reduce(torch.add, parts) if parts else None
        downs, thin = torch.cat(by_a) if by_a else None, torch.cat(hidden, 1) if again else thin
        gradients: list[Tensor | None] = []
        for i, (term, b, ratio) in enumerate(terms):
            need_a, need_b, need_ratio = need[6 + 3 * i : 9 + 3 * i]
            by_b = scaled(term.scale, (grad.flatten(2) @ _thin(term, thin).flatten(2).mT).sum(0))
            gradients.append(term.thin(downs).to(tensors[3 * i].dtype) if need_a and downs is not None else None)
            gradients.append(
                (by_b if ratio is None else by_b * ratio[:, None]).to(b.dtype).view_as(b) if need_b else None
            )
            gradients.append(_by_ratio(grad, x, weight, how, by_b * b.flatten(1), ratio.dtype) if need_ratio else None)
        return by_x, None, None, None, None, None, *gradients


def _merged(weight: Tensor, layout: UpdateLayout, tensors: Sequence[Any]) -> Tensor:
    """Return the kernel ``ratio * (W + scale * B A)``."""
    for term, a, b, ratio in zip(layout.terms, tensors[::3], tensors[1::3], tensors[2::3], strict=True):
        up, down = b.to(weight.dtype).flatten(1), a.to(weight.dtype).flatten(1)
        weight = torch.addmm(weight.flatten(1), up, down, alpha=term.scale).view(weight.shape)
        weight = weight if ratio is None else (weight * ratio[:, None, None, None]).to(weight.dtype)
    return weight


def _groups(x: Tensor, layout: UpdateLayout, tensors: Sequence[Any]) -> list[tuple[Tensor, Tensor | None]]:
    """Return the A of each group on top of each other, and which elements of x it reads, None: all."""
    return [(group.stacked(tensors[::3], x.dtype), group.mask(x)) for group in layout.groups]


def _read(x: Tensor, how: How, a: Tensor, mask: Tensor | None) -> Tensor:
    return F.conv2d(x if mask is None else x * mask, a, None, *how)


def _thin(term: Term, products: Tensor) -> Tensor:
    return products if term.ranks is None else products[:, term.ranks]


def _back(grad: Tensor, term: Term, b: Tensor, ratio: Tensor | None) -> Tensor:
    """Return the gradient of a term's thin product (batch, rank, height, width)."""
    b = b if ratio is None else b * ratio[:, None, None, None]
    return scaled(term.scale, F.conv2d(grad, b.to(grad.dtype).transpose(0, 1)))


def _rescaled(grad: Tensor, terms: Sequence[tuple[Term, Tensor, Tensor | None]]) -> Tensor:
    """Return the output's gradient in front of the ratio: the first term's, if any has one."""
    ratio = terms[0][2]
    return grad if ratio is None else grad.clone().mul_(ratio[:, None, None])


def _by_ratio(grad: Tensor, x: Tensor, weight: Tensor, how: How, thin: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of a ratio, as in a linear layer: the sums of ``W * dW`` and ``B * dB`` by channel."""
    whole: Any = _gradients(grad, x, weight, how, False, True)[1]
    return (whole * weight).flatten(1).sum(1, dtype=dtype) + thin.sum(1, dtype=dtype)


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, how: How, of_x: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a convolution's input and weight, those asked for."""
    if not (of_x or of_weight):
        return None, None
    rest = (False, [0, 0], 1, [of_x, of_weight, False])
    by_x, by_weight, _ = torch.ops.aten.convolution_backward(grad, x, weight, None, *how, *rest)
    return by_x, by_weight
