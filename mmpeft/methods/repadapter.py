"""RepAdapter: linear adapters before the projections, which disappear into them after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit


class RepAdapter(Method):
    """A linear adapter with a grouped up-projection before qkv and before the MLP (Luo et al. 2023, arXiv:2302.08106).

    z + s (B (A z + a) + b) on what the layer reads, without a nonlinearity, B in groups. The up-projection starts at
    zero, so the model starts unchanged. Merges into the weights.
    """

    name: ClassVar[str] = "repadapter"
    facts: ClassVar[Facts] = Facts(
        merges=True,
        lacks=("eva02", "convnext", "hf_clips", "denoisers", "generic", "llama", "mixtral", "bert", "t5"),
        small={"bottleneck": 4, "dropout": 0.0},
        published=(Published(VIT_B, 239_808),),
    )

    bottleneck: int = Field(default=8, ge=1)
    """Width of the bottleneck."""
    groups: int = Field(default=2, ge=1)
    """Blocks of the up-projection."""
    scale: float = 1.0
    """Factor s on the change."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after the down-projection."""
    targets: tuple[str, ...] = ("attn.qkv", "mlp.up")
    """Linear sites whose input is adapted."""

    @model_validator(mode="after")
    def _divides(self) -> RepAdapter:
        if self.bottleneck % self.groups:
            raise ValueError(f"groups: {self.groups} does not divide bottleneck: {self.bottleneck}")
        return self

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One adapter per linear site."""
        from mmpeft.edits import AdaptedInput

        options = self.model_dump(exclude={"layers", "towers", "targets"})
        for site in anatomy.linear_sites(self.targets, self.layers, self.towers):
            if site.in_features % self.groups:
                raise ValueError(
                    f"groups: {self.groups} does not divide the {site.in_features} features of {site.path}"
                )
            yield site, AdaptedInput(site, **options)
