"""A bottleneck on pooled features, blended with them (CLIP-Adapter)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import FeaturesSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, ChangesOutput, Point


class FeatureBlend(ChangesInput, ChangesOutput):
    """``r relu(U relu(D f)) + (1 - r) f`` of the features f (batch, width), without biases (Gao et al. 2021).

    D (width / reduction, width) and U start as torch's linear layers do.
    """

    def __init__(self, site: FeaturesSite, *, reduction: int, ratio: float) -> None:
        super().__init__()
        if site.width % reduction:
            raise ValueError(f"reduction: {reduction} does not divide the {site.width} features of {site.path}")
        self.ratio = ratio
        self.down = nn.Linear(site.width, site.width // reduction, bias=False)
        self.up = nn.Linear(site.width // reduction, site.width, bias=False)

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach where the features are."""
        assert isinstance(site, FeaturesSite)
        return [Binding(edit=self, host=site.host, point=Point(site.point), site=site)]

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Blend the features that enter the head."""
        return (self._blend(args[0]), *args[1:]), kwargs

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Blend the features that leave the tower."""
        return self._blend(y)

    def _blend(self, features: Tensor) -> Tensor:
        hidden = F.relu(F.linear(features, self.down.weight.to(features.dtype)))
        changed = F.relu(F.linear(hidden, self.up.weight.to(features.dtype)))
        return self.ratio * changed + (1 - self.ratio) * features

    def extra_repr(self) -> str:
        """The ratio."""
        return f"ratio={self.ratio:g}"
