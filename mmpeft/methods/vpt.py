"""VPT: visual prompt tuning, shallow and deep."""

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


class VPT(Method):
    """Visual prompts behind the class token, before the first block or anew before each (Jia et al. 2022).

    arXiv:2203.12119. Learned tokens join the patches behind the position embedding, and leave the output again. Not the
    frozen model at the start: the tokens are random and attended to. Deep prompts replace, they don't accumulate.
    """

    name: ClassVar[str] = "vpt"
    facts: ClassVar[Facts] = Facts(
        start="tokens are attended to",
        inserts=True,
        lacks=("beit", "staged", "denoisers", "generic", "language"),
        small={"tokens": 3, "dropout": 0.0},
        rate=0.03,
        published=(
            Published(VIT_B, 38_400, {"tokens": 50, "deep": False}),
            Published(VIT_B, 92_160, {"tokens": 10}),
            Published(VIT_B, 921_600, {"tokens": 100}),
            Published(VIT_B, 926_214, {"tokens": 100}, classes=6, source="printed by the authors' code"),
            Published(VIT_B, 929_290, {"tokens": 100}, classes=10, source="printed by the authors' code"),
            Published(VIT_B, 351_373, {"tokens": 5}, classes=397, source="printed by the authors' code"),
        ),
    )

    tokens: int = Field(default=10, ge=1)
    """Number of tokens."""
    deep: bool = True
    """New tokens before every block; otherwise only before the first of ``layers``."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout on the tokens; when not given, the paper's 0.1 for deep and 0 for shallow."""
    project: int | None = Field(default=None, ge=1)
    """Features of the learned vectors, of which one linear layer makes all blocks' tokens (PROJECT in the authors'
    code); null: as many as the tokens have."""

    def label(self) -> str:
        """VPT-deep or VPT-shallow."""
        return "VPT-deep" if self.deep else "VPT-shallow"

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One set of tokens per tower."""
        from mmpeft.anatomies.sites import SequenceSite
        from mmpeft.anatomies.towers import choose_layers
        from mmpeft.edits import Tokens

        dropout = (0.1 if self.deep else 0.0) if self.dropout is None else self.dropout
        for site in anatomy.select(("tokens",), SequenceSite, "all", self.towers):
            layers = sorted(choose_layers(self.layers, len(site.blocks)))
            layers = layers if self.deep else layers[:1]
            yield site, Tokens(site, tokens=self.tokens, layers=layers, dropout=dropout, project=self.project)
