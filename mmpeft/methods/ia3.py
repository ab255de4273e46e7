"""IA3: learned vectors that scale keys, values and the hidden units of the MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit


class IA3(Method):
    """Learned scales on keys, values and MLP hidden units, all starting at one (Liu et al. 2022, arXiv:2205.05638).

    Keys and values are l * (W x + b), their biases scaled too, and the MLP's down layer is W (l * x) + b. Merges into
    the weight.
    """

    name: ClassVar[str] = "ia3"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        rate=0.03,
        published=(
            Published(VIT_B, 55_296),
            Published("Llama-2-7B", 614_400),
            Published("Llama-3-8B", 524_288),
        ),
    )

    targets: str | tuple[str, ...] | None = None
    """Linear sites whose output is scaled, bias included; by default attn.k and attn.v."""
    feedforward: str | tuple[str, ...] | None = None
    """Linear sites whose input is scaled; by default mlp.down where there is one."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One vector per linear site."""
        from mmpeft.edits import Scale

        for site in anatomy.linear_sites(self.targets, self.layers, self.towers, ("attn.k", "attn.v")):
            yield site, Scale(site, on="output")
        hidden = [site for site in anatomy.linear_sites("all", self.layers, self.towers) if site.name == "mlp.down"]
        if self.feedforward is not None:
            hidden = anatomy.linear_sites(self.feedforward, self.layers, self.towers)
        for site in hidden:
            yield site, Scale(site, on="input")
