"""Dropout that keeps no mask: the backward pass draws it again from the same seed."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpeft.kernels.plain import is_plain
from mmpeft.kernels.private_names import has_fake_mode, is_transformed

LEVELS = 2**16
"""A mask compares numbers of 16 bits, so that a rate is right to 1e-5. On one CPU core, for 1576 x 384: 0.5 ms, where
Bernoulli draws take 2.6 and ``F.dropout`` 4.3."""


def new_seed() -> int:
    """Return a seed of torch's own CPU generator: one that checkpointing draws again. Fake tensors draw no numbers."""
    if has_fake_mode():
        return 0
    return int(torch.randint(2**62, (), device="cpu"))


def kept_share(rate: float) -> float:
    """Return the share of elements that a mask keeps: 1 - rate, in steps of 2^-16."""
    return _kept_levels(rate) / LEVELS


def keep_mask(shape: torch.Size, rate: float, seed: int, device: torch.device) -> Tensor:
    """Return booleans of a shape, True where dropout keeps an element; the same for the same seed and device."""
    count = math.prod(shape)
    generator = torch.Generator(device).manual_seed(seed)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[:count].view(shape) < _kept_levels(rate) - LEVELS // 2


def seedable(x: Tensor) -> bool:
    """Whether a mask for x may be drawn from a seed: of a plain tensor, outside the compiler and transforms."""
    return is_plain(x) and x.device.type != "meta" and not torch.compiler.is_compiling() and not is_transformed()


def dropped(x: Tensor, rate: float, training: bool) -> Tensor:
    """Return x with elements zeroed at a rate and the others scaled up, as ``F.dropout`` does; no mask is kept."""
    if not rate or not training:
        return x
    if not seedable(x):
        return F.dropout(x, rate)
    y: Tensor = _Dropped.apply(x, rate, new_seed())
    return y


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, seed: int) -> Tensor:
        ctx.rate, ctx.seed = rate, seed
        return _masked(x, rate, seed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _masked(grad, ctx.rate, ctx.seed), None, None


def _masked(x: Tensor, rate: float, seed: int) -> Tensor:
    return (x * keep_mask(x.shape, rate, seed, x.device)).div_(kept_share(rate))


def _kept_levels(rate: float) -> int:
    return min(LEVELS - 1, max(1, round((1 - rate) * LEVELS)))
