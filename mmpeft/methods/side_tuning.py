"""Side-Tuning: a small network beside a frozen one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit


class SideTuning(Method):
    """A small convolutional network blended into the frozen features by a learned scalar (Zhang et al. 2020).

    arXiv:1912.13503. g f + (1 - g) side(image) of the pooled features f, with g = sigmoid(a) and a from 0. Not the
    frozen model at the start: each has one half. Needs no backward pass through the backbone.
    """

    name: ClassVar[str] = "side_tuning"
    facts: ClassVar[Facts] = Facts(
        start="the side network has one half",
        lacks=("deit_distilled", "denoisers", "generic", "language"),
        small={"channels": 4, "depth": 2},
        published=(Published(VIT_B, 586_273),),
    )
    layered: ClassVar[bool] = False

    channels: int = Field(default=32, ge=1)
    """Channels of the first convolution; each further one doubles them."""
    depth: int = Field(default=4, ge=1, le=1000)
    """Convolutions of stride 2."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One side network per tower."""
        from mmpeft.anatomies.anatomy import NoSiteError
        from mmpeft.anatomies.sites import FeaturesSite
        from mmpeft.edits import SideNetwork

        sites = anatomy.select(("features",), FeaturesSite, "all", self.towers)
        if not any(site.channels for site in sites):
            raise NoSiteError(f"method: 'side_tuning' reads pictures, and {anatomy.describe()} has no site for them")
        for site in sites:
            if site.channels is not None:
                yield site, SideNetwork(site, channels=self.channels, depth=self.depth)
