"""FacT: one tensor holds the deltas of all layers, decomposed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import LinearSite, Site
    from mmpeft.edits import Edit

TARGETS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")


class FacT(Method):
    """Deltas of all layers from shared factors, in tensor-train or Tucker form (Jie and Deng 2023, arXiv:2212.03145).

    W + s V S U for each width x width slice of q, k, v, out and the MLP's layers: U and V are shared by all of them, S
    is a slice's own, free (tensor train) or from a shared core (Tucker). V starts at zero, so the model starts
    unchanged. Merges into the weights.
    """

    name: ClassVar[str] = "fact"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        lacks=("staged", "generic", "llama", "mixtral"),
        small={"rank": 3, "dropout": 0.0},
        published=(
            Published(VIT_B, 21_504, {"rank": 8}),
            Published(VIT_B, 61_440, {"rank": 16}),
            Published(VIT_B, 30_976, {"rank": 16, "form": "tk"}),
            Published(VIT_B, 86_528, {"rank": 32, "form": "tk"}),
        ),
    )

    rank: int = Field(default=16, ge=1)
    """Rank of the shared factors."""
    form: Literal["tt", "tk"] = "tt"
    """Tensor train (a free core per slice) or Tucker (all cores from one small tensor)."""
    scale: float = 1.0
    """Factor s on every delta."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout before V."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The shared factors per tower, then one delta per projection."""
        from mmpeft.edits import FactorDelta, SharedFactors

        towers = anatomy.chosen_towers(self.towers)
        for tower in [tower for tower in towers if tower.blocks] or towers:
            sites = anatomy.linear_sites(TARGETS, self.layers, (tower.name,))
            sizes = [_slices(site, tower.width) for site in sites]
            if self.rank > tower.width:
                raise ValueError(f"rank: {self.rank} is more than the {tower.width} features of tower {tower.name!r}")
            shared = SharedFactors(width=tower.width, rank=self.rank, slices=sum(sizes), form=self.form)
            yield anatomy.root(tower), shared
            for index, site in enumerate(sites):
                options = {"scale": self.scale, "dropout": self.dropout}
                yield site, FactorDelta(site, shared, first=sum(sizes[:index]), **options)


def _slices(site: LinearSite, width: int) -> int:
    from mmpeft.anatomies.anatomy import NoSiteError

    if not width:
        raise NoSiteError(f"{site.path}: the blocks of this model have no one width, which FacT's shared factors need")
    if site.in_features % width or site.out_features % width:
        raise NoSiteError(f"{site.path}: {site.shape} is no whole number of {width} x {width} slices, which FacT needs")
    return (site.in_features // width) * (site.out_features // width)
