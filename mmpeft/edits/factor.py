"""Factor tuning: the deltas of all layers share two factors (FacT)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import LinearSite, Site
from mmpeft.edits.base import Binding, Call, ChangesOutput, Edit, Fold, Merges
from mmpeft.edits.references import Borrowed
from mmpeft.kernels.dropout import dropped


class SharedFactors(Edit):
    """U (rank, width) and V (width, rank) of all deltas; in Tucker form also C (rank, rank, rank) and P (rank, slices).

    U starts uniform in +-1/sqrt(width), V at zero, C and P by Xavier (Jie and Deng 2023).
    """

    def __init__(self, *, width: int, rank: int, slices: int, form: Literal["tt", "tk"]) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.empty(rank, width))
        self.v = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.u, a=math.sqrt(5))
        if form == "tk":
            self.c = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, rank, rank)))
            self.p = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rank, slices)))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach nowhere: the deltas do."""
        return []


class FactorDelta(ChangesOutput, Merges):
    """``y + s V drop(S U x)`` for each width x width slice of the layer's weight, S (rank, rank) its own per slice.

    ``S`` is free (tensor train) or ``sum_k C[:, :, k] P[k, j]`` for slice j (Tucker).
    """

    def __init__(self, site: LinearSite, shared: SharedFactors, *, first: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.shared = Borrowed(shared)
        rank, width = shared.u.shape
        self.outs, self.ins, self.first = site.out_features // width, site.in_features // width, first
        self.scale, self.dropout = scale, dropout
        if not hasattr(shared, "c"):
            self.core = nn.Parameter(torch.empty(self.outs, self.ins, rank, rank))
            nn.init.uniform_(self.core, -1 / math.sqrt(rank), 1 / math.sqrt(rank))

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add the delta."""
        shared = self.shared.value
        low = F.linear(x.unflatten(-1, (self.ins, -1)), shared.u.to(x.dtype))
        mixed = torch.einsum("...is,oirs->...or", low, self._core().to(x.dtype))
        mixed = dropped(mixed, self.dropout, self.training)
        return y + F.linear(mixed, shared.v.to(x.dtype) * self.scale).flatten(-2)

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """``W + s V S U``, slice by slice."""
        shared = self.shared.value
        u, v, core = (tensor.to(weight) for tensor in (shared.u, shared.v, self._core()))
        delta = torch.einsum("dr,oirs,se->odie", v, core, u).reshape(weight.shape)
        return weight + self.scale * delta, bias

    def _core(self) -> Tensor:
        """S of every slice, (outs, ins, rank, rank)."""
        if isinstance(core := self._parameters.get("core"), Tensor):
            return core
        shared = self.shared.value
        slices = shared.p[:, self.first : self.first + self.outs * self.ins]
        return torch.einsum("rsk,kj->jrs", shared.c, slices).unflatten(0, (self.outs, self.ins))

    def extra_repr(self) -> str:
        """Slices and scale."""
        return f"{self.outs} x {self.ins} slices, scale={self.scale:g}"
