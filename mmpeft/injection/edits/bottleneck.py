"""Bottleneck adapters at branch sites: Houlsby, Pfeiffer, parallel, AdaptFormer, Adapter+."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.injection.edits.base import Binding, Call, Edit
from mmpeft.injection.sites import BranchSite, Site
from mmpeft.kernels.dropout import dropped

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
Reads = Literal["output", "input", "residual", "stream"]
Scale = float | Literal["learned", "channels"]


class Bottleneck(Edit):
    """``f(z) = s (U drop(phi(D norm(z) + b_D)) + b_U)``, added to the sublayer.

    ``reads`` says what z is: the sublayer's ``output`` (sequential), its normalised ``input`` (parallel), the
    ``residual`` stream entering the branch (AdaptFormer), or the ``stream`` behind the branch, so that the block goes
    on with z + f(z) (Adapter+); in these two f joins after the branch's own stochastic depth. D (bottleneck, width)
    starts uniform in +-1/sqrt(width) and U (width, bottleneck) at zero, or both from a truncated normal. In training f
    is left out of a sample with probability ``drop_path`` (Huang et al. 2016, arXiv:1603.09382).
    """

    def __init__(
        self,
        site: BranchSite,
        *,
        bottleneck: int,
        reads: Reads,
        activation: str,
        scale: Scale,
        dropout: float,
        drop_path: float,
        norm: bool,
        init: Literal["zero", "normal"],
    ) -> None:
        super().__init__()
        self.reads, self.activation, self.dropout, self.drop_path = reads, activation, dropout, drop_path
        self.norm = nn.LayerNorm(site.width) if norm else None
        self.down = nn.Linear(site.width, bottleneck)
        self.up = nn.Linear(bottleneck, site.width)
        learned = {"learned": 1, "channels": site.width}
        self.scale = nn.Parameter(torch.ones(learned[scale])) if isinstance(scale, str) else scale
        self._reset(init)

    def _reset(self, init: Literal["zero", "normal"]) -> None:
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
        if init == "zero":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the sublayer, or to the end of its branch with a tap on the residual stream."""
        assert isinstance(site, BranchSite)
        if self.reads in ("residual", "stream"):
            if site.entry is None or site.exit is None or (site.parallel and self.reads == "stream"):
                raise ValueError(f"{site.path}: this block gives no access to the residual stream around {site.name!r}")
            return [Binding(edit=self, host=site.exit, point="output", site=site, tap=site.entry)]
        return [Binding(edit=self, host=site.host, point="output", site=site, tap=site.source)]

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add f to the branch."""
        f = self.change(self.read(x, y))
        if self.drop_path and self.training:
            kept = f.new_empty(len(f), *[1] * (f.ndim - 1)).bernoulli_(1 - self.drop_path)
            f = f * (kept / (1 - self.drop_path))
        return y + f

    def read(self, x: Tensor, y: Tensor) -> Tensor:
        """Return z."""
        return y if self.reads == "output" else x + y if self.reads == "stream" else x

    def change(self, z: Tensor) -> Tensor:
        """Return f(z), every sample's."""
        if self.norm is not None:
            z = F.layer_norm(z, self.norm.normalized_shape, *_cast(self.norm, z), self.norm.eps)
        hidden = ACTIVATIONS[self.activation](F.linear(z, *_cast(self.down, z)))
        hidden = dropped(hidden, self.dropout, self.training)
        scale = self.scale.to(z.dtype) if isinstance(self.scale, Tensor) else self.scale
        return F.linear(hidden, *_cast(self.up, z)) * scale

    def extra_repr(self) -> str:
        """Input, activation and scale."""
        scale = "learned" if isinstance(self.scale, Tensor) else self.scale
        return f"reads={self.reads}, activation={self.activation}, scale={scale}"


def _cast(layer: nn.Linear | nn.LayerNorm, like: Tensor) -> tuple[Tensor, Tensor]:
    return layer.weight.to(like.dtype), layer.bias.to(like.dtype)
