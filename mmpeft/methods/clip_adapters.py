"""Adapters on the features and logits of two-tower models: CLIP-Adapter and Tip-Adapter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.facts import Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit


class CLIPAdapter(Method):
    """A bottleneck on the pooled features, blended with them: r A(f) + (1 - r) f (Gao et al. 2021, arXiv:2110.04544).

    Not the frozen model at the start. Needs no backward pass through the backbone.
    """

    name: ClassVar[str] = "clip_adapter"
    facts: ClassVar[Facts] = Facts(
        start="blends features with changed ones",
        lacks=("deit_distilled", "denoisers", "generic", "language"),
        rate=0.003,
        published=(
            Published("ViT-B-16", 131_072, classes=100),
            Published("RN50", 524_288, classes=100),
        ),
    )
    layered: ClassVar[bool] = False

    towers: str | tuple[str, ...] = "vision"
    reduction: int = Field(default=4, ge=1)
    """Width of the features over that of the bottleneck."""
    ratio: float = Field(default=0.2, gt=0, le=1)
    """Share r of the adapted features."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One bottleneck per tower."""
        from mmpeft.anatomies.sites import FeaturesSite
        from mmpeft.edits import FeatureBlend

        for site in anatomy.select(("features",), FeaturesSite, "all", self.towers):
            yield site, FeatureBlend(site, reduction=self.reduction, ratio=self.ratio)


class TipAdapter(Method):
    """A cache of the training samples' features beside a zero-shot classifier (Zhang et al. 2022, arXiv:2207.09519).

    Starts empty, as the frozen model; ``mmpeft.objectives.feature_cache.fill`` takes the samples in. Needs no training,
    or with ``trained`` (Tip-Adapter-F) none of the backbone.
    """

    name: ClassVar[str] = "tip_adapter"
    facts: ClassVar[Facts] = Facts(
        start="the cache was filled",
        lacks=("vision", "clips", "denoisers", "generic", "language"),
        small={"shots": 2, "trained": True},
        learns={"shots": 8, "trained": True, "alpha": 10.0, "beta": 5.5},
        rate=0.001,
        published=(
            Published("ViT-B-16", 0, classes=1000),
            Published("ViT-B-16", 8_192_000, {"trained": True}, classes=1000),
            Published("RN50", 16_384_000, {"trained": True}, classes=1000),
        ),
    )
    layered: ClassVar[bool] = False

    shots: int = Field(default=16, ge=1)
    """Samples of each class that the cache has room for."""
    alpha: float = Field(default=1.0, ge=0)
    """Weight of the cache."""
    beta: float = Field(default=1.0, gt=0)
    """Sharpness of the affinity."""
    trained: bool = False
    """Train the keys (Tip-Adapter-F)."""

    @property
    def binds_classes(self) -> bool:
        """The cache holds their samples."""
        return True

    def label(self) -> str:
        """Tip-Adapter-F when trained."""
        return "Tip-Adapter-F" if self.trained else "Tip-Adapter"

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One cache at the logits."""
        from mmpeft.anatomies.sites import LogitsSite
        from mmpeft.edits import FeatureCache

        for site in anatomy.select(("logits",), LogitsSite):
            places = self.shots * site.classes
            yield site, FeatureCache(site, samples=places, alpha=self.alpha, beta=self.beta, trained=self.trained)
