"""Low-rank deltas at linear sites (LoRA, rsLoRA, DoRA)."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import WeightSite
from mmpeft.edits.base import Binding, Call, Fold, Merges, UpdatesWeight
from mmpeft.edits.low_rank_start import Start, started
from mmpeft.edits.together import StacksOutput, Together
from mmpeft.kernels.dropout import dropped, new_seed
from mmpeft.kernels.low_rank import low_rank_add
from mmpeft.kernels.per_weight import PerWeight
from mmpeft.kernels.private_names import is_transformed
from mmpeft.kernels.quantized import dense
from mmpeft.kernels.routing import routed_low_rank
from mmpeft.kernels.rows import take
from mmpeft.kernels.updates import Update


class LowRank(UpdatesWeight, Merges, StacksOutput):
    """``y + s B A drop(x)``: A (rank, in) uniform in +-1/sqrt(in), B (out, rank) zero (Hu et al. 2021).

    ``scale`` s is alpha/rank, or alpha/sqrt(rank) when rank-stabilised (Kalajdzievski 2023). Where A and B start from
    the weight (``start``), the delta is ``s (B A - B_0 A_0)``: the base is not touched, and the start of A and of -B is
    kept as ``start_A`` and ``start_B``. ``ratio`` is B's learning rate over A's (LoRA+, Hayou et al. 2024); a ``fixed``
    A is not trained (LoRA-FA, Zhang et al. 2023).
    """

    def __init__(
        self,
        site: WeightSite,
        *,
        rank: int,
        alpha: float,
        dropout: float,
        rank_stabilized: bool,
        start: Start = "uniform",
        ratio: float = 1.0,
        fixed: bool = False,
    ) -> None:
        super().__init__()
        self.rows, self.transposed, self.names = site.rows, site.transposed, (site.weight, site.bias)
        self.scale = alpha / (math.sqrt(rank) if rank_stabilized else rank)
        self.dropout = dropout
        self.parts = ("lora", "start") if start in ("pissa", "olora") else ("lora",)
        self.rates = {} if ratio == 1.0 else {"lora_B": ratio}
        a, b = started(self._weight(site.host), rank=rank, scale=self.scale, start=start)
        if fixed:
            self.register_buffer("lora_A", a)
        else:
            self.lora_A = nn.Parameter(a)
        self.lora_B = nn.Parameter(b)
        if "start" in self.parts:
            self.register_buffer("start_A", a.detach().clone())
            self.register_buffer("start_B", -b.detach())

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add the delta; the small factors are cast to the input's precision, never the input to theirs."""
        return low_rank_add(y, dropped(x, self.dropout, self.training), *self.factors(), self.scale)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B of the whole delta: with what is subtracted as further rows of A and columns of B."""
        if len(self.parts) == 1:
            return self.lora_A, self.lora_B
        return (
            torch.cat([self.lora_A, self.get_buffer("start_A")]),
            torch.cat([self.lora_B, self.get_buffer("start_B")], 1),
        )

    def update(self, binding: Binding) -> Update | None:
        """``s B A drop``; None for dropout under transforms of functions, which draw by themselves."""
        if not (self.dropout and self.training):
            return Update(*self.factors(), self.scale)
        if is_transformed():
            return None
        return Update(*self.factors(), self.scale, dropout=self.dropout, seed=new_seed())

    def fixed_factors(self) -> dict[str, tuple[Tensor, float]]:
        """A and s, where A is not trained."""
        return {} if "lora_A" in self._parameters else {"lora_B": (self.lora_A, self.scale)}

    def alike(self) -> Hashable:
        """Ranks within a factor of four are filled up with zeros."""
        return None if type(self) is not LowRank else (self.lora_A.shape[0].bit_length() // 2, self.dropout)

    @staticmethod
    def stacked(edits: Sequence[LowRank]) -> tuple[Tensor, ...]:
        """All A, and all B transposed and times their scales."""
        factors = [edit.factors() for edit in edits]
        rank = max(a.shape[0] for a, _ in factors)
        a = torch.stack([a if a.shape[0] == rank else F.pad(a, (0, 0, 0, rank - a.shape[0])) for a, _ in factors])
        b = torch.stack([b if b.shape[1] == rank else F.pad(b, (0, rank - b.shape[1])) for _, b in factors])
        scales = [edit.scale for edit in edits]
        b = b.mT.contiguous()
        return a, b if set(scales) == {1.0} else b * b.new_tensor(scales)[:, None, None]

    def routed_output(self, x: Tensor, y: Tensor, call: Together, *, in_place: bool) -> Tensor:
        """Add each sample's delta."""
        a, b = call.stack(y.dtype)
        return routed_low_rank(y, dropped(x, self.dropout, self.training), a, b, call.layout, in_place=in_place)

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """``W + s B A``."""
        a, b = (factor.to(weight).flatten(1) for factor in self.factors())
        return weight + self.scale * (b @ a).view_as(weight), bias

    def _weight(self, host: nn.Module) -> Tensor:
        weight: Tensor = dense(getattr(host, self.names[0]))
        weight = weight.T if self.transposed else weight
        return weight if self.rows is None else take(weight, self.rows, 0)

    def extra_repr(self) -> str:
        """Rank, features and scale."""
        return f"{self.lora_A.shape[1]} -> {self.lora_A.shape[0]} -> {self.lora_B.shape[0]}, scale={self.scale:g}"


class DecomposedLowRank(LowRank):
    """``m / n (W x + s B A x) + b`` with n = the row norms of W + s B A, no gradient through n (DoRA, Liu et al. 2024).

    m (out) starts as the row norms of W. n comes from ``|W|^2 + 2 s (W A^T) . B + s^2 (B A A^T) . B``: no matrix of the
    size of W is made, and ``|W|^2`` is made once.
    """

    def __init__(self, site: WeightSite, **options: Any) -> None:
        super().__init__(site, **options)
        self.magnitude = nn.Parameter(self._square_norms(self._weight(site.host)).sqrt())
        self.squares = PerWeight()

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Rescale base output and delta by m / n, all but the bias."""
        host = call.binding.host
        ratio = self._ratio(host)
        x = dropped(x, self.dropout, self.training)
        a, b = (factor.to(x.dtype) for factor in self.factors())
        delta = F.linear(F.linear(x, a), b * (self.scale * ratio[:, None]).to(b.dtype))
        bias = self._bias(host)
        plain = y if bias is None else y - bias.to(y.dtype)
        return y + (ratio - 1).to(y.dtype) * plain + delta

    def update(self, binding: Binding) -> Update | None:
        """``s B A drop``, and m / n on all of the output but the bias."""
        update = super().update(binding)
        return update and replace(update, ratio=self._ratio(binding.host))

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """``m / n (W + s B A)``; of a bias that earlier edits changed, the change is rescaled too."""
        changed, _ = super().fold(weight, None, host)
        ratio, host_bias = self._ratio(host).to(weight), self._bias(host)
        if bias is not None and host_bias is not None:
            bias = host_bias.to(bias) + ratio * (bias - host_bias.to(bias))
        return changed * ratio.view(-1, *[1] * (weight.ndim - 1)), bias

    def _ratio(self, host: nn.Module) -> Tensor:
        weight = self._weight(host)
        squares = self.squares.of(getattr(host, self.names[0]), lambda: self._square_norms(weight))
        return self.magnitude / self._norms(weight, squares)

    def _bias(self, host: nn.Module) -> Tensor | None:
        bias: Tensor | None = getattr(host, self.names[1])
        return bias if bias is None or self.rows is None else take(bias, self.rows, 0)

    @staticmethod
    @torch.no_grad()
    def _square_norms(weight: Tensor) -> Tensor:
        wide = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(wide).flatten(1).square().sum(1)

    @torch.no_grad()
    def _norms(self, weight: Tensor, squares: Tensor) -> Tensor:
        a, b, w = (tensor.to(squares.dtype).flatten(1) for tensor in (*self.factors(), weight))
        cross = ((w @ a.T) * b).sum(1)
        delta = ((b @ (a @ a.T)) * b).sum(1)
        return (squares + 2 * self.scale * cross + self.scale**2 * delta).sqrt()
