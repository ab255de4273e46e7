"""A bottleneck ``s (U drop(phi(D norm(z) + b)) + c)`` that keeps what it reads, and nothing that it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpeft.kernels.dropout import dropped, keep_mask, kept_share, new_seed, seedable
from mmpeft.kernels.plain import computed_in, is_plain
from mmpeft.kernels.recompute import unwatched

_aten = torch.ops.aten
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (F.relu, lambda grad, z: _aten.threshold_backward(grad, z, 0)),
    "gelu": (F.gelu, lambda grad, z: _aten.gelu_backward(grad, z)),
    "silu": (F.silu, lambda grad, z: grad * z.sigmoid() * (1 + z * (1 - z.sigmoid()))),
    "tanh": (torch.tanh, lambda grad, z: _aten.tanh_backward(grad, z.tanh())),
}
"""Each phi(z), and the gradient that it passes on."""


@dataclass(eq=False, slots=True)
class Shape:
    """What of a bottleneck is no tensor."""

    activation: str
    scale: float = 1.0
    dropout: float = 0.0
    eps: float = 1e-5
    seed: int = 0


def bottleneck(
    z: Tensor,
    down: tuple[Tensor, Tensor | None],
    up: tuple[Tensor, Tensor | None],
    shape: Shape,
    *,
    norm: tuple[Tensor, Tensor] | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Return the bottleneck of z (..., in): D (width, in) and U (out, width) with a bias each, or without.

    The backward pass keeps z and the weights by reference and makes all else again: the normalised z, the mask of the
    dropout and two thin products. ``norm`` is the weight and bias of a layer norm of z; a learned ``scale`` (1 or out)
    comes on top of the fixed one. It computes in z's precision, or autocast's; gradients have the weights' own.
    """
    tensors = (*(norm or (None, None)), *down, *up, scale)
    if not seedable(z) or not all(t is None or is_plain(t) for t in tensors):
        return _plain(z, shape, tensors)
    shape.seed = new_seed() if shape.dropout else 0
    with unwatched(z):
        y: Tensor = _Bottleneck.apply(z, shape, *tensors)
    return y


def _plain(z: Tensor, shape: Shape, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """Compute it step by step."""
    gain, shift, down, b, up, c, scale = (t if t is None else t.to(z.dtype) for t in tensors)
    assert down is not None
    assert up is not None
    z = z if gain is None else F.layer_norm(z, gain.shape, gain, shift, shape.eps)
    hidden = dropped(ACTIVATIONS[shape.activation][0](F.linear(z, down, b)), shape.dropout, True)
    return F.linear(hidden, up, c) * (shape.scale if scale is None else scale * shape.scale)


class _Bottleneck(torch.autograd.Function):
    """Thin matrices are (width, n) for n rows of z, as in low-rank updates."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, shape: Shape, *tensors: Any) -> Tensor:
        ctx.dtype, ctx.shape = computed_in(z), shape
        ctx.save_for_backward(z, *tensors)
        with torch.autocast(z.device.type, enabled=False):
            up, c = _up(shape, tensors, ctx.dtype)
            hidden = _Hidden(z, shape, tensors, ctx.dtype).kept.T
            y = hidden @ up.T if c is None else torch.addmm(c, hidden, up.T)
        return y.view(*z.shape[:-1], len(up))

    @staticmethod
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, ...]:
        z, *tensors = ctx.saved_tensors
        shape, dtype, need = ctx.shape, ctx.dtype, ctx.needs_input_grad
        made, grad = _Hidden(z, shape, tensors, dtype), by_y.reshape(-1, by_y.shape[-1])
        by_up = _by_up(grad, made.kept, shape, tensors) if any(need[6:]) else (None, None, None)
        by_kept = _up(shape, tensors, dtype)[0].T @ grad.T
        by_pre = ACTIVATIONS[shape.activation][1](by_kept if made.mask is None else by_kept * made.mask, made.pre)
        by_down = by_pre @ made.read if need[4] else None
        into = made.into(by_pre.T @ tensors[2].to(dtype)) if any(need[:4]) else (None, None, None)
        every = (into[0], None, *into[1:], by_down, by_pre.sum(1), *by_up)
        wanted = zip(every, (z, None, *tensors), need, strict=True)
        return tuple(g.to(t.dtype) if g is not None and t is not None and asked else None for g, t, asked in wanted)


class _Hidden:
    """What a bottleneck computes on its way: ``read`` norm(z), ``pre`` D read + b, and ``kept`` drop(phi(pre))."""

    def __init__(self, z: Tensor, shape: Shape, tensors: Sequence[Any], dtype: torch.dtype) -> None:
        self.gain, self.shift, down, b, *_ = tensors
        self.z = read = z.reshape(-1, z.shape[-1])
        if self.gain is not None:
            self.gain, self.shift = self.gain.to(z.dtype), self.shift.to(z.dtype)
            read, self.mean, self.deviation = torch.native_layer_norm(
                read, [z.shape[-1]], self.gain, self.shift, shape.eps
            )
        self.read, down = read.to(dtype), down.to(dtype)
        self.pre = down @ self.read.T if b is None else torch.addmm(b.to(dtype)[:, None], down, self.read.T)
        hidden = ACTIVATIONS[shape.activation][0](self.pre)
        self.mask = keep_mask(hidden.shape, shape.dropout, shape.seed, z.device) if shape.dropout else None
        self.kept = hidden if self.mask is None else hidden * self.mask
        self.shape = z.shape

    def into(self, by_read: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the gradients of z and of the norm's weight and bias."""
        if self.gain is None:
            return by_read.view(self.shape), None, None
        by_z, by_gain, by_shift = _aten.native_layer_norm_backward(
            by_read.to(self.z.dtype),
            self.z,
            [self.z.shape[-1]],
            self.mean,
            self.deviation,
            self.gain,
            self.shift,
            [True] * 3,
        )
        return by_z.view(self.shape), by_gain, by_shift


def _up(shape: Shape, tensors: Sequence[Any], dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return U and its bias with all scales in them."""
    *_, up, c, scale = tensors
    share = kept_share(shape.dropout) if shape.dropout else 1.0
    up, c = up * (shape.scale / share), None if c is None else c * shape.scale
    if scale is not None:
        up, c = up * scale[:, None], None if c is None else c * scale
    return up.to(dtype), None if c is None else c.to(dtype)


def _by_up(grad: Tensor, kept: Tensor, shape: Shape, tensors: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of U, its bias and the learned scale; that of the last is made of the other two."""
    *_, up, c, scale = tensors
    share = kept_share(shape.dropout) if shape.dropout else 1.0
    by_up, by_c = (kept @ grad).T * (shape.scale / share), grad.sum(0) * shape.scale
    if scale is None:
        return by_up, by_c, None
    by_scale = (by_up * up).sum(1) if c is None else (by_up * up).sum(1) + by_c * c
    return by_up * scale[:, None], by_c * scale, by_scale if len(scale) > 1 else by_scale.sum(0, keepdim=True)
