"""LoRA and DoRA: low-rank deltas of linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from mmpeft.methods.base import Method

if TYPE_CHECKING:
    from mmpeft.injection.anatomy import Anatomy
    from mmpeft.injection.edits import Edit, LowRank
    from mmpeft.injection.sites import Site


class LoRA(Method):
    """Low-rank adaptation: W + (alpha / rank) B A at linear sites (Hu et al. 2021, arXiv:2106.09685).

    Of a convolution, A has the kernel and B is 1 x 1 (LoCon). B starts at zero, so the model starts unchanged. Merges
    into the weight.
    """

    name: ClassVar[str] = "lora"

    rank: int = Field(default=8, ge=1)
    """Rank of the delta."""
    alpha: float | None = Field(default=None, gt=0)
    """Scale numerator; the rank when not given, so that the scale is 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of A."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) (rsLoRA, arXiv:2312.03732)."""
    targets: str | tuple[str, ...] | None = None
    """Sites (attn.q, mlp.*, resnet.conv1 ...), patterns over paths, or 'all' linear ones; default attn.q and attn.v."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One delta per linear site or convolution."""
        from mmpeft.injection.edits import ConvLowRank, LowRank

        yield from self._plan(anatomy, LowRank, ConvLowRank)

    def _plan(self, anatomy: Anatomy, linear: type[LowRank], convolution: type[LowRank]) -> Iterator[tuple[Site, Edit]]:
        from mmpeft.injection.sites import ConvSite

        for site in anatomy.weight_sites(self.targets, self.layers, self.towers, ("attn.q", "attn.v")):
            edit = convolution if isinstance(site, ConvSite) else linear
            alpha = self.rank if self.alpha is None else self.alpha
            options = {"rank": self.rank, "alpha": alpha, "dropout": self.dropout}
            yield site, edit(site, rank_stabilized=self.rank_stabilized, **options)  # type: ignore[arg-type]


class DoRA(LoRA):
    """LoRA with a learned magnitude per output feature: m (W + s B A) / |W + s B A| (Liu et al. 2024).

    arXiv:2402.09353. Starts unchanged, with m at the row norms of W. Merges into the weight.
    """

    name: ClassVar[str] = "dora"

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One decomposed delta per linear site or convolution."""
        from mmpeft.injection.edits import ConvDecomposedLowRank, DecomposedLowRank

        yield from self._plan(anatomy, DecomposedLowRank, ConvDecomposedLowRank)


class CLIPLoRA(LoRA):
    """LoRA of q, k and v in both towers of CLIP with one setting for all tasks (Zanella and Ben Ayed 2024).

    arXiv:2405.18541. Scales by alpha / sqrt(rank); the dropout is drawn anew for each projection.
    """

    name: ClassVar[str] = "clip_lora"

    rank: int = Field(default=2, ge=1)
    alpha: float | None = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    rank_stabilized: bool = True
    targets: str | tuple[str, ...] | None = ("attn.q", "attn.k", "attn.v")
