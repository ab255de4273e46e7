"""Convpass: convolutional bypasses beside attention and MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit


class Convpass(Method):
    """A 3x3 convolution in a bottleneck beside attention and MLP (Jie and Deng 2022, arXiv:2207.07039).

    y + s U q(conv(q(D z))), with z the sublayer's normalised input, q the quick GELU, and the convolution over the
    square grid of patches. U starts at zero, so the model starts unchanged.
    """

    name: ClassVar[str] = "convpass"
    facts: ClassVar[Facts] = Facts(
        lacks=("convnext", "denoisers", "generic", "language"),
        small={"bottleneck": 4, "dropout": 0.0},
        published=(
            Published(VIT_B, 327_552),
            Published(VIT_B, 163_776, {"targets": ["attn"]}),
        ),
    )

    bottleneck: int = Field(default=8, ge=1)
    """Channels of the convolution."""
    scale: float = 1.0
    """Factor s on the bypass; the paper chooses it per data set among 0.01 to 100."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before the up-projection."""
    kernel: Literal["identity", "xavier"] = "identity"
    """How the 3x3 kernel starts."""
    targets: tuple[Literal["attn", "mlp"], ...] = ("attn", "mlp")
    """The sublayers that get a bypass."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One bypass per sublayer."""
        from mmpeft.anatomies.anatomy import NoSiteError
        from mmpeft.anatomies.sites import BranchSite
        from mmpeft.edits import ConvolutionalBottleneck

        options = self.model_dump(exclude={"layers", "towers", "targets"})
        branches = anatomy.select(self.targets, BranchSite, self.layers, self.towers)
        sites = [site for site in branches if site.prefix is not None]
        if not sites:
            raise NoSiteError(
                f"method: 'convpass' convolves patches, and {anatomy.describe()} has no site with patches"
            )
        for site in sites:
            yield site, ConvolutionalBottleneck(site, **options)
