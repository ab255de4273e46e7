"""The low-rank update ``y + s B A x``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def low_rank_add(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return ``y + scale * (x a^T) b^T`` for y (..., out), x (..., in), a (rank, in), b (out, rank).

    The factors are cast to x's precision; x is never cast or copied.
    """
    return y + F.linear(F.linear(x, a.to(x.dtype)) * scale, b.to(x.dtype))
