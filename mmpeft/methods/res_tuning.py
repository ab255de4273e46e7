"""Res-Tuning: tuners unbound from the frozen operations, beside them or as a bypass along all blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.bottleneck import BottleneckMethod
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit
    from mmpeft.edits.bottleneck import Reads
    from mmpeft.edits.bypass import BypassLayer


class ResTuning(BottleneckMethod):
    """A tuner beside attention and MLP, on their normalised input: OP(x) + U gelu(D x) (Jiang et al. 2023).

    arXiv:2310.19859. U starts at zero, so the model starts unchanged.
    """

    name: ClassVar[str] = "res_tuning"
    facts: ClassVar[Facts] = Facts(
        lacks=("convnext", "generic"), small={"bottleneck": 4}, published=(Published(VIT_B, 1_198_848),)
    )
    reads: ClassVar[Reads] = "input"

    bottleneck: int = Field(default=32, ge=1)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "gelu"
    targets: tuple[Literal["attn", "mlp", "cross"], ...] = ("attn", "mlp")


class ResTuningBypass(Method):
    """A side path of tuners along all blocks, outside the backbone's graph (Jiang et al. 2023, arXiv:2310.19859).

    Behind block l with output x_l the path b_l = g R(x_l) + (1 - g) R'(b_{l-1}), from the input b_0 of the first block;
    R and R' are tuners z + U gelu(D z), and the last b_l takes the place of the last block's output. Not the frozen
    model at the start: the paths add up. Needs no backward pass through the backbone. For stacks of blocks of one
    width; the upsampling between stages of swift's code is not offered.
    """

    name: ClassVar[str] = "res_tuning_bypass"
    facts: ClassVar[Facts] = Facts(
        start="the paths add up",
        lacks=("beit", "staged", "denoisers", "generic", "language"),
        small={"bottleneck": 4},
        published=(Published(VIT_B, 1_198_848, {"gated": False}),),
    )

    bottleneck: int = Field(default=32, ge=1)
    """Width of each tuner; with groups that of the tuner which the groups share."""
    groups: int | None = Field(default=None, ge=1)
    """Groups of interleaved channels which one small tuner serves, each alone: swift's res_group_adapter, where this is
    its head (4 there), and bottleneck is its scale_factor (2) times width / head. Null: a tuner of all channels."""
    gated: bool = True
    """Weigh the lateral and the vertical path by a learned gate, as in the paper; the released code adds them."""
    weight: float | Literal["gate", "learned", "channels"] = 1.0
    """Factor on each tuner's change (swift's adapter_weight): a number, learned from 1 (swift: scale), learned per
    channel (scale_channel), or a gate that the change itself opens, one number per sample."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One layer of the bypass per block."""
        from mmpeft.anatomies.sites import SequenceSite
        from mmpeft.edits import BypassLayer

        for sequence in anatomy.select(("tokens",), SequenceSite, "all", self.towers):
            previous: BypassLayer | None = None
            sites = [site for site in anatomy.sites(towers=sequence.tower) if site.name == "block"]
            for site in sites:
                last = site is sites[-1]
                width = sequence.width
                options = self.model_dump(include={"bottleneck", "groups", "gated", "weight"})
                previous = BypassLayer(width, previous, last=last, **options)
                yield site, previous
