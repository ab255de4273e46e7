"""Unified views of adapters: MAM adds a prefix and a parallel adapter up, UniPELT gates three methods by the input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from mmpeft.methods.base import Method
from mmpeft.methods.bottleneck import ParallelAdapter, Pfeiffer
from mmpeft.methods.facts import Facts, Published
from mmpeft.methods.lora import LoRA
from mmpeft.methods.prefix_tuning import PrefixTuning

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site
    from mmpeft.edits import Edit


class MAM(Method):
    """A prefix in every attention and a scaled adapter beside every MLP (He et al. 2022, arXiv:2110.04366).

    Not the frozen model at the start: the prefix is random and attended to.
    """

    name: ClassVar[str] = "mam"
    facts: ClassVar[Facts] = Facts(
        start="tokens are attended to",
        composed=True,
        lacks=("swin_v2", "convnext", "mlp"),
        small={"tokens": 3, "hidden": 8, "bottleneck": 8},
        learns={"bottleneck": 32},
        rate=0.001,
        published=(Published("BART-large", 27_414_528, {"hidden": None}),),
    )

    tokens: int = Field(default=30, ge=1)
    """Length of the prefix."""
    hidden: int | None = Field(default=512, ge=1)
    """Width of the network that makes the prefixes while they train; null trains them directly."""
    bottleneck: int = Field(default=512, ge=1)
    """Width of the adapter's bottleneck."""
    scale: float = 4.0
    """Factor on the adapter's output."""

    def kept(self) -> Self:
        """Return the method without the network."""
        return self.model_copy(update={"hidden": None})

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The prefixes, then the adapters."""
        where: dict[str, Any] = {"layers": self.layers, "towers": self.towers}
        yield from _prefixes(anatomy, tokens=self.tokens, hidden=self.hidden, **where)
        yield from ParallelAdapter(bottleneck=self.bottleneck, scale=self.scale, **where).plan(anatomy)


class UniPELT(Method):
    """LoRA, a prefix and an adapter behind the MLP, each with a gate that opens by the input (Mao et al. 2022).

    arXiv:2110.07577. LoRA's gate stands in the place of its scale. Not the frozen model at the start: the prefix is
    random and attended to.
    """

    name: ClassVar[str] = "unipelt"
    facts: ClassVar[Facts] = Facts(
        start="tokens are attended to",
        composed=True,
        lacks=("swin_v2", "convnext", "mlp"),
        small={"rank": 2, "tokens": 3, "hidden": 8, "bottleneck": 4},
        published=(
            Published("BERT-base", 11_083_376),
            Published("BERT-base", 1_410_672, {"hidden": None}),
        ),
    )

    rank: int = Field(default=8, ge=1)
    """Rank of LoRA, at attn.q and attn.v."""
    tokens: int = Field(default=10, ge=1)
    """Length of the prefix."""
    hidden: int | None = Field(default=512, ge=1)
    """Width of the network that makes the prefixes while they train; null trains them directly."""
    bottleneck: int = Field(default=48, ge=1)
    """Width of the adapter's bottleneck."""
    original_ln_before: bool | None = None
    """What the adapter reads, as in `Pfeiffer`. Null: LN(y + x) in blocks with norms behind (the paper), else y."""
    gate: Literal["auto", "token", "sequence"] = "auto"
    """One gate per token, or the paper's mean over the sequence; auto: the mean where all tokens see each other."""

    def kept(self) -> Self:
        """Return the method without the network."""
        return self.model_copy(update={"hidden": None})

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The deltas, the prefixes and the adapters."""
        where: dict[str, Any] = {"layers": self.layers, "towers": self.towers}
        yield from LoRA(rank=self.rank, gate=self.gate, targets=("attn.q", "attn.v"), **where).plan(anatomy)
        yield from _prefixes(anatomy, tokens=self.tokens, hidden=self.hidden, gate=self.gate, **where)
        adapter = Pfeiffer(
            bottleneck=self.bottleneck, gate=self.gate, original_ln_before=self.original_ln_before, **where
        )
        yield from adapter.plan(anatomy)


def _prefixes(anatomy: Anatomy, **options: object) -> Iterator[tuple[Site, Edit]]:
    """Plan prefixes in all attentions of tokens to each other, and to another tower where there are such."""
    from mmpeft.anatomies.sites import AttentionSite

    there = {site.name for site in anatomy.sites(AttentionSite)}
    targets = ["attn.kernel", *(name for name in ("cross.kernel",) if name in there)]
    yield from PrefixTuning.model_validate({"targets": targets, **options}).plan(anatomy)
