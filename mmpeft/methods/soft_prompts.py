"""Learned vectors in front of a language model's words: prompt tuning and P-tuning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from mmpeft.methods.base import Method
from mmpeft.methods.facts import Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import Site, WordsSite
    from mmpeft.edits import Edit


class PromptTuning(Method):
    """Learned vectors in front of the words of a language model (Lester et al. 2021, arXiv:2104.08691).

    In an encoder-decoder model in front of the encoder's. The output has a position per word of the user's, so labels
    fit as they are. Not the frozen model at the start: the vectors are attended to.
    """

    name: ClassVar[str] = "prompt_tuning"
    facts: ClassVar[Facts] = Facts(
        start="tokens are attended to",
        inserts=True,
        lacks=("vision", "clips", "zero_shot", "denoisers", "generic"),
        small={"tokens": 3},
        published=(Published("Llama-2-7B", 81_920, source="vectors x width"),),
    )
    layered: ClassVar[bool] = False

    tokens: int = Field(default=20, ge=1)
    """Number of vectors."""
    init: Literal["random", "vocabulary", "text"] = "random"
    """How they start: uniform in +-0.5, as words drawn at random, or as those of ``text``."""
    text: str | None = None
    """Words to start from, again and again until there are enough."""
    ids: tuple[NonNegativeInt, ...] | None = Field(default=None, min_length=1)
    """Token ids of ``text``; the model's tokenizer says them where they are not given."""

    @model_validator(mode="after")
    def _begins(self) -> Self:
        if (self.init == "text") != (self.text is not None or self.ids is not None):
            raise ValueError(f"init: {self.init!r} with text: {self.text!r}: a text is what 'text', and only it, needs")
        return self

    def resolve(self, anatomy: Anatomy) -> Self:
        """Look up the words of the text."""
        if self.text is None or self.ids is not None:
            return self
        if anatomy.words is None:
            raise ValueError(
                f"text: {self.text!r} needs a tokenizer, and {anatomy.describe()} has none: give ids, such as "
                "tokenizer(text, add_special_tokens=False).input_ids"
            )
        return self.model_copy(update={"ids": anatomy.words(self.text)})

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One prompt at the first tower of words."""
        from mmpeft.edits import SoftPrompt

        site = _words(anatomy, self.towers)
        drawn: Literal["vocabulary", "random"] = "vocabulary" if self.init == "vocabulary" else "random"
        yield site, SoftPrompt(site, tokens=self.tokens, start=self.ids or drawn)


class PTuning(Method):
    """Prompt tuning with vectors that a small network makes (P-tuning, Liu et al. 2021, arXiv:2103.10385).

    Saved is what the network made: an adapter that was loaded has its vectors alone. Not the frozen model at the start.
    """

    name: ClassVar[str] = "p_tuning"
    facts: ClassVar[Facts] = Facts(
        start="tokens are attended to",
        inserts=True,
        lacks=("vision", "clips", "zero_shot", "denoisers", "generic"),
        small={"tokens": 3, "hidden": 8},
        published=(
            Published("Llama-2-7B", 1_151_232),
            Published("Llama-2-7B", 81_920, {"encoder": None}, source="vectors x width"),
        ),
    )
    layered: ClassVar[bool] = False

    tokens: int = Field(default=20, ge=1)
    """Number of vectors."""
    encoder: Literal["mlp", "lstm"] | None = "mlp"
    """The network; null trains the vectors alone."""
    hidden: int = Field(default=128, ge=1)
    """Width of the network, of an LSTM in each direction."""

    def kept(self) -> Self:
        """Return the method without the network."""
        return self.model_copy(update={"encoder": None})

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One prompt at the first tower of words."""
        from mmpeft.edits import EncodedPrompt, SoftPrompt

        site = _words(anatomy, self.towers)
        if self.encoder is None:
            yield site, SoftPrompt(site, tokens=self.tokens)
        else:
            yield site, EncodedPrompt(site, tokens=self.tokens, encoder=self.encoder, hidden=self.hidden)


def _words(anatomy: Anatomy, towers: str | tuple[str, ...]) -> WordsSite:
    from mmpeft.anatomies.sites import WordsSite

    return anatomy.select(("words",), WordsSite, towers=towers)[0]
