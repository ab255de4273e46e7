"""How the factors of a low-rank delta start: A at random and B at zero, or both from the weight itself."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Start = Literal["uniform", "gaussian", "pissa", "olora"]


def started(weight: Tensor, *, rank: int, scale: float, start: Start) -> tuple[Tensor, Tensor]:
    """Return A (rank, in, ...) and B (out, rank, ...) for a weight (out, in, ...), as ``start`` says.

    - uniform: A in +-1/sqrt(in), B = 0 (Hu et al. 2021); gaussian: A ~ N(0, 1/rank^2), B = 0;
    - pissa: ``s B A`` is the best approximation of W of this rank, ``A = (S_r / s)^(1/2) V_r^T`` and
      ``B = U_r (S_r / s)^(1/2)`` for ``W = U S V^T`` (Meng et al. 2024, arXiv:2404.02948);
    - olora: ``B = Q_r`` and ``A = R_r`` for ``W = Q R`` (Büyükakyüz 2024, arXiv:2406.01775).
    """
    out, *each = weight.shape
    sizes = (rank, *each), (out, rank, *[1] * len(each[1:]))
    if start in ("uniform", "gaussian"):
        a, b = torch.empty(sizes[0]), torch.zeros(sizes[1])
        nn.init.normal_(a, std=1 / rank) if start == "gaussian" else nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        return a, b
    most = min(out, math.prod(each))
    if rank > most:
        raise ValueError(f"rank: {rank} for init: {start!r}, and a weight of {tuple(weight.shape)} has {most} at most")
    if torch.get_default_device().type == "meta":
        return torch.empty(sizes[0]), torch.empty(sizes[1])
    flat = weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)
    a, b = _principal(flat, rank, scale) if start == "pissa" else _orthonormal(flat, rank)
    return a.reshape(sizes[0]), b.reshape(sizes[1])


def _principal(weight: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    root = (s[:rank] / scale).sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def _orthonormal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    q, r = torch.linalg.qr(weight)
    return r[:rank], q[:, :rank]
