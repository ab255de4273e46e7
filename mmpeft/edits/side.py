"""A small network beside the whole backbone, blended into its features: Side-Tuning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.anatomies.sites import FeaturesSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, ChangesOutput, Point


class SideNetwork(ChangesInput, ChangesOutput):
    """``g f + (1 - g) side(image)``: f the frozen backbone's features (detached), g the sigmoid of a scalar from 0.

    The side network is four strided 3x3 convolutions with group norm and a linear layer (Zhang et al. 2020). The scalar
    has one element, so no weight decay.
    """

    def __init__(self, site: FeaturesSite, *, channels: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        assert site.channels is not None
        width = site.channels
        for index in range(depth):
            layers += [nn.Conv2d(width, channels << index, 3, stride=2, padding=1, bias=False)]
            width = channels << index
            layers += [nn.GroupNorm(min(8, width), width), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.project = nn.Linear(width, site.width)
        self.alpha = nn.Parameter(torch.zeros(1))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach where the features are, with a tap on the image."""
        assert isinstance(site, FeaturesSite)
        return [Binding(edit=self, host=site.host, point=Point(site.point), site=site, tap=site.model)]

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Blend the features that enter the head."""
        return (self._blend(args[0], call.tapped()), *args[1:]), kwargs

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Blend the features that leave the tower."""
        return self._blend(y, x)

    def _blend(self, features: Tensor, image: Tensor) -> Tensor:
        gate = self.alpha.sigmoid()
        side = self.project(self.convolutions(image.to(self.alpha.dtype)).mean((2, 3)))
        return (gate * features.detach() + (1 - gate) * side).to(features.dtype)
