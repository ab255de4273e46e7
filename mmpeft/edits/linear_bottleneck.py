"""Bottleneck adapters at single linear layers: beside one, or in front of it or behind it (LLM-Adapters)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from mmpeft.anatomies.sites import LinearSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, ChangesOutput
from mmpeft.kernels.bottleneck import Shape, bottleneck

Place = Literal["beside", "front", "behind"]


class LinearBottleneck(ChangesInput, ChangesOutput):
    """``f(z) = s U phi(D z)`` at a layer ``y = W x + b``, without biases (Hu et al. 2023).

    ``beside`` it is ``y + f(x)``, in ``front`` of it ``W (x + f(x)) + b``, ``behind`` it ``y + f(y)``. D (bottleneck,
    in) starts uniform in +-1/sqrt(in) and U (out, bottleneck) at zero, or both as N(0, 0.02^2).
    """

    def __init__(
        self,
        site: LinearSite,
        *,
        place: Place,
        bottleneck: int,
        activation: str,
        scale: float,
        dropout: float,
        init: Literal["zero", "normal"],
    ) -> None:
        super().__init__()
        if place == "front" and site.rows is not None:
            raise ValueError(f"{site.path}: its input is that of {site.host_path} as a whole, which it is a slice of")
        self.place, self.activation, self.scale, self.dropout = place, activation, scale, dropout
        entering = site.out_features if place == "behind" else site.in_features
        leaving = site.in_features if place == "front" else site.out_features
        self.down = nn.Linear(entering, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, leaving, bias=False)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.02)
        if init == "zero":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the layer's input or output."""
        return self.bind_input(site) if self.place == "front" else self.bind_output(site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Add the adapter to what enters the layer."""
        return (args[0] + self._transform(args[0]), *args[1:]), kwargs

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add the adapter to what leaves the layer."""
        return y + self._transform(self.read(x, y, call))

    def read(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Return z."""
        return x if self.place == "beside" else y

    def _transform(self, z: Tensor) -> Tensor:
        shape = Shape(self.activation, self.scale, self.dropout if self.training else 0.0)
        return bottleneck(z, (self.down.weight, None), (self.up.weight, None), shape)

    def extra_repr(self) -> str:
        """Place, activation and scale."""
        return f"{self.place}, activation={self.activation}, scale={self.scale:g}"
