"""Prefix tuning: trained keys and values in front of every attention's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from mmpeft.methods.base import Method
from mmpeft.methods.facts import VIT_B, Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import AttentionSite, Site
    from mmpeft.anatomies.towers import Tower
    from mmpeft.edits import Edit


class PrefixTuning(Method):
    """Keys and values in front of every attention's own (Li and Liang 2021, arXiv:2101.00190).

    softmax(q [P_k; k]^T) [P_v; v], with P_k and P_v of every layer learned, and seen by every query. They are part of
    the attention call, not of a cache, so the positions of the model's own tokens stay. Not the frozen model at the
    start: the prefix is random and attended to. While it trains, a network may make it; saved is what it made.
    """

    name: ClassVar[str] = "prefix_tuning"
    facts: ClassVar[Facts] = Facts(
        start="tokens are attended to",
        lacks=("swin_v2", "convnext", "mlp"),
        small={"tokens": 3, "hidden": 8},
        learns={"hidden": None},
        rate=0.1,
        published=(
            Published(VIT_B, 368_640, {"hidden": None}),
            Published(VIT_B, 9_864_704),
            Published("Llama-2-7B", 5_242_880, {"hidden": None}),
            Published("Llama-3-8B", 1_310_720, {"hidden": None}),
        ),
    )

    tokens: int = Field(default=20, ge=1)
    """Length of the prefix."""
    hidden: int | None = Field(default=512, ge=1)
    """Width of the network that makes the prefixes of all layers from one set of vectors; null trains them directly."""
    std: float = Field(default=1.0, ge=0)
    """Standard deviation of prefixes that are trained directly, at the start."""
    ids: tuple[int, ...] | None = None
    """Token ids of words whose own keys and values prefixes that are trained directly start as, repeated or cut."""
    gate: Literal["auto", "token", "sequence"] | None = None
    """A gate from the attention's input (UniPELT): per token, or averaged; auto: averaged where all see all."""
    targets: tuple[str, ...] = ("attn.kernel",)
    """Attention sites: ``attn.kernel`` of the tokens to each other, ``cross.kernel`` to another tower."""
    shifted: bool = False
    """Whether learned positions count from behind the prefix, as HF peft has them; rotary ones are relative."""

    def kept(self) -> Self:
        """Return the method without what only served the start: the network, and the words."""
        return self.model_copy(update={"hidden": None, "ids": None})

    @model_validator(mode="after")
    def _words_need_no_network(self) -> Self:
        if self.ids is not None and (self.hidden is not None or not self.ids):
            raise ValueError(f"ids: {list(self.ids)}: words, and hidden: null, for a network can't start as they are")
        return self

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The network of a tower, then one prefix per attention."""
        from mmpeft.anatomies.sites import AttentionSite, PositionsSite
        from mmpeft.edits import Prefix, PrefixNetwork, ShiftedPositions
        from mmpeft.edits.gate import gate_of

        attentions = anatomy.select(self.targets, AttentionSite, self.layers, self.towers)
        for tower in anatomy.chosen_towers(self.towers):
            sites = [site for site in attentions if site.tower == tower.name]
            network = None
            if self.hidden is not None and sites:
                width = tower.width or _keys(sites[0])
                network = PrefixNetwork(tokens=self.tokens, width=width, hidden=self.hidden)
                yield anatomy.root(tower), network
            tables = anatomy.sites(PositionsSite, "all", (tower.name,)) if self.shifted and sites else []
            for table in tables:
                yield table, ShiftedPositions(self.tokens)
            for site in sites:
                prefix = Prefix(site, tokens=self.tokens, std=self.std, network=network)
                prefix.input_gate = None if self.gate is None else gate_of(site, self.gate, _width(tower, site))
                if self.ids is not None:
                    prefix.words = (self.ids * self.tokens)[: self.tokens]
                yield site, prefix


def _width(tower: Tower, site: AttentionSite) -> int:
    """Return the width of the tokens that enter an attention: of its block, which may be another one in each stage."""
    from mmpeft.anatomies.sites import BranchSite

    around = (other for block in tower.blocks if block.index == site.layer for other in block.sites)
    widths = (other.width for other in around if isinstance(other, BranchSite) and other.name == "block")
    return next(widths, tower.width)


def _keys(site: AttentionSite) -> int:
    return site.heads * site.key_width
