"""Ladder Side-Tuning: a narrow copy of the tower, fed by the frozen one's blocks."""

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


class LadderSideTuning(Method):
    """A narrow network of the tower's own blocks, climbing beside it on gated rungs (Sung et al. 2022).

    arXiv:2206.06522. Rung i mixes the backbone's state h_i, made narrow by D_i, into the side state: s_i = block_i(mu_i
    D_i h_i + (1 - mu_i) s_{i-1}) with a learned mu_i from 1/2; the last one is made wide again. Not the frozen model at
    the start: the head reads the side network alone, which starts at random. Needs no backward pass through the
    backbone. ``layers`` are the blocks with a rung and a narrow block.
    """

    name: ClassVar[str] = "ladder_side_tuning"
    facts: ClassVar[Facts] = Facts(
        start="the head reads the side network alone",
        replaces=True,
        lacks=("vision", "clips", "zero_shot", "denoisers", "generic", "gpt_neox", "mixtral"),
        small={"reduction": 2},
        published=(
            Published(
                "T5-base",
                3_878_706,
                {"layers": [1, 2, 3, 5, 6, 7, 9, 10, 11]},
                source="the paper's 3,878,712, but for 6 gates that the authors' code has and never reads",
            ),
        ),
    )

    reduction: int = Field(default=8, ge=1)
    """What all widths are divided by; it must divide the width of an attention head."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One ladder per tower; those of an encoder and its decoder belong together."""
        from mmpeft.anatomies.sites import LadderSite
        from mmpeft.anatomies.towers import choose_layers
        from mmpeft.edits import Ladder

        made: list[tuple[LadderSite, Ladder]] = []
        for site in anatomy.select(("ladder",), LadderSite, "all", self.towers):
            source = next((edit for other, edit in made if other.reader is site.host), None)
            if site.listens and source is None:
                raise ValueError(f"towers: {self.towers!r}: a ladder at the decoder needs one at its encoder: take all")
            layers = sorted(choose_layers(self.layers, len(site.blocks)))
            made.append((site, Ladder(site, reduction=self.reduction, layers=layers, listens_to=source)))
        hosts = [site.host for site, _ in made]
        if any(site.reader is not None and site.reader not in hosts for site, _ in made):
            raise ValueError(f"towers: {self.towers!r}: a ladder at the encoder needs one at its decoder: take all")
        yield from made
