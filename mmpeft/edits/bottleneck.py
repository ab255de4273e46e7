"""Bottleneck adapters at branch sites: Houlsby, Pfeiffer, parallel, AdaptFormer, Adapter+."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import BranchSite, Site
from mmpeft.edits.base import Binding, Call, ChangesOutput, Point
from mmpeft.edits.together import StacksOutput, Together
from mmpeft.kernels.bottleneck import ACTIVATIONS, Shape, bottleneck
from mmpeft.kernels.dropout import dropped
from mmpeft.kernels.routing import Stack, routed, stacked_linear, stacked_norm

Reads = Literal["output", "input", "residual", "stream", "normed"]
Scale = float | Literal["learned", "channels"]


class Bottleneck(ChangesOutput, StacksOutput):
    """``f(z) = s (U drop(phi(D norm(z) + b_D)) + b_U)``, added to the sublayer; with ``norm: out`` ``norm(f(z))`` is.

    ``reads`` says what z is: the sublayer's ``output`` (sequential), its normalised ``input`` (parallel), the
    ``residual`` stream entering the branch (AdaptFormer), the ``stream`` behind the branch, so that the block goes on
    with z + f(z) (Adapter+), or in a post-norm block that stream ``normed`` by the block's layer norm, so that the
    block goes on with LN(y + f(LN(y + x)) + x) (Pfeiffer); in these three f joins after the branch's own stochastic
    depth. D (bottleneck, width) starts uniform in +-1/sqrt(width) and U (width, bottleneck) at zero, or both from a
    truncated normal. In training f is left out of a sample with probability ``drop_path`` (Huang et al. 2016,
    arXiv:1603.09382).
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
        norm: bool | Literal["out"],
        init: Literal["zero", "normal"],
    ) -> None:
        super().__init__()
        self.reads, self.activation, self.dropout, self.drop_path = reads, activation, dropout, drop_path
        self.norm = nn.LayerNorm(site.width) if norm else None
        self.norm_behind = norm == "out"
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
        if self.reads in ("residual", "stream", "normed"):
            if site.entry is None or site.exit is None or (site.parallel and self.reads == "stream"):
                raise ValueError(f"{site.path}: this block gives no access to the residual stream around {site.name!r}")
            return [Binding(edit=self, host=site.exit, point=Point.OUTPUT, site=site, tap=site.entry)]
        return [Binding(edit=self, host=site.host, point=Point.OUTPUT, site=site, tap=site.source)]

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add f to the branch."""
        return y + self._dropped(self.change(self.read(x, y, call)))

    def _dropped(self, f: Tensor) -> Tensor:
        if self.drop_path and self.training:
            kept = f.new_empty(len(f), *[1] * (f.ndim - 1)).bernoulli_(1 - self.drop_path)
            f = f * (kept / (1 - self.drop_path))
        return f

    def read(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Return z."""
        if self.reads == "normed":
            return normed(x + y, call)
        return y if self.reads == "output" else x + y if self.reads == "stream" else x

    def change(self, z: Tensor) -> Tensor:
        """Return f(z), every sample's."""
        learned, fixed = (self.scale, 1.0) if isinstance(self.scale, Tensor) else (None, self.scale)
        shape = Shape(
            self.activation,
            fixed,
            self.dropout if self.training else 0.0,
            1e-5 if self.norm is None else self.norm.eps,
        )
        norm = None if self.norm is None else (self.norm.weight, self.norm.bias)
        down, up = ((layer.weight, layer.bias) for layer in (self.down, self.up))
        if norm is None or not self.norm_behind:
            return bottleneck(z, down, up, shape, norm=norm, scale=learned)
        f = bottleneck(z, down, up, shape, scale=learned)
        return F.layer_norm(f, norm[0].shape, norm[0].to(f.dtype), norm[1].to(f.dtype), shape.eps)

    def alike(self) -> Hashable:
        """Shapes, activation and what is dropped; the scale may be a number in one and learned in another."""
        widths = self.down.out_features, isinstance(self.scale, Tensor) and len(self.scale)
        norm = self.norm is not None and (self.norm.eps, self.norm_behind)
        return *widths, self.activation, self.dropout, self.drop_path, norm

    @staticmethod
    def stacked(edits: Sequence[Bottleneck]) -> tuple[Tensor, ...]:
        """Scales, weights and biases of D and U and, where there is one, of the norm."""
        numbers = [
            edit.scale if isinstance(edit.scale, Tensor) else edit.up.weight.new_tensor([edit.scale]) for edit in edits
        ]
        scales = [number[None] for number in numbers]
        layers = [[layer for layer in (edit.down, edit.up, edit.norm) if layer is not None] for edit in edits]
        tensors = [[tensor for layer in parts for tensor in (layer.weight, layer.bias)] for parts in layers]
        return tuple(torch.stack(parts) for parts in (scales, *map(list, zip(*tensors, strict=True))))

    def routed_output(self, x: Tensor, y: Tensor, call: Together, *, in_place: bool) -> Tensor:
        """Add each sample's f."""
        layout, z = call.layout, self.read(x, y, call)
        f = routed(layout.flat(z), call.stack(z.dtype), layout, self.down.out_features, self._changes)
        parts = layout.split(y)
        return layout.put(parts, layout.chosen(parts) + self._dropped(f).view(-1, *parts.shape[1:])).flatten(0, 1)

    def _changes(self, z: Tensor, stack: Stack) -> Tensor:
        """Return f(z) for z (n, length, width) by n weights each."""
        scale, down, down_bias, up, up_bias, *norm = stack
        if self.norm is not None and not self.norm_behind:
            z = stacked_norm(z, norm[0], norm[1], self.norm.eps)
        hidden = dropped(
            ACTIVATIONS[self.activation][0](stacked_linear(z, down, down_bias)), self.dropout, self.training
        )
        f = stacked_linear(hidden, up, up_bias) * scale
        return stacked_norm(f, norm[0], norm[1], self.norm.eps) if self.norm is not None and self.norm_behind else f

    def extra_repr(self) -> str:
        """Input, activation and scale."""
        scale = "learned" if isinstance(self.scale, Tensor) else self.scale
        return f"reads={self.reads}, activation={self.activation}, scale={scale}"


def normed(stream: Tensor, call: Call) -> Tensor:
    """Return the stream as the block's layer norm behind this sublayer makes it, with whatever edits that carries."""
    site = call.binding.site
    assert isinstance(site, BranchSite)
    assert site.norm is not None
    made: Tensor = site.norm(stream)
    return made
