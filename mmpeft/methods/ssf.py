"""SSF: scale and shift the features after every operation."""

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


class SSF(Method):
    """Scale and shift after the embedding, every norm and every linear layer (Lian et al. 2022, arXiv:2210.08823).

    gamma * y + beta per channel, behind each of them. Not exactly the frozen model at the start: scales ~ N(1, std),
    shifts ~ N(0, std). Merges into the weights, where layers have a bias and scale by their weight itself.
    """

    name: ClassVar[str] = "ssf"
    facts: ClassVar[Facts] = Facts(
        start="scales start around one",
        merges=True,
        unroutable=("swin_v2",),
        rate=0.03,
        published=(
            Published(VIT_B, 205_824),
            Published(VIT_B, 282_724, classes=100, source="printed by the authors' code"),
        ),
    )

    std: float = Field(default=0.02, ge=0)
    """Standard deviation of the initial scales around one and shifts around zero."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One affine per embedding, norm and whole linear layer of the towers; the task head is left alone."""
        from mmpeft.anatomies.sites import NormSite
        from mmpeft.edits import Affine

        for norm in anatomy.sites(NormSite, self.layers, self.towers):
            yield norm, Affine(norm, std=self.std)
        for linear in anatomy.linear_sites("all", self.layers, self.towers):
            yield linear, Affine(linear, std=self.std)
