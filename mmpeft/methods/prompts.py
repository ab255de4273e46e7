"""Learned prompts of two-tower models: CoOp, CoCoOp, MaPLe, independent prompts and PromptSRC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from mmpeft.methods.base import Method
from mmpeft.methods.facts import Facts, Published

if TYPE_CHECKING:
    from mmpeft.anatomies.anatomy import Anatomy
    from mmpeft.anatomies.sites import PromptSite, SequenceSite, Site
    from mmpeft.edits import Edit


class _Words(Method):
    """What learned words have in common: how many there are, and how they start."""

    tokens: int = Field(default=4, ge=1)
    """Number of learned words."""
    init: str | None = None
    """Words to start from; those beyond ``tokens`` stay in the text as they are. Null starts at random."""
    ids: tuple[NonNegativeInt, ...] | None = None
    """Token ids of ``init``; the model's tokenizer says them where they are not given. () starts at random."""
    start: int | None = Field(default=None, ge=0)
    """Number of ids in front of a text's first word; the tokenizer or the model says it where it is not given."""

    @model_validator(mode="after")
    def _begins(self) -> Self:
        if self.init is not None and set("{}") & set(self.init):
            raise ValueError(f"init: {self.init!r} is the words alone, without a place for the name of a class")
        if self.ids and len(self.ids) < self.tokens:
            raise ValueError(f"ids: {list(self.ids)} are {len(self.ids)}, fewer than tokens: {self.tokens}")
        return self

    def resolve(self, anatomy: Anatomy) -> Self:
        """Look up the words, and where the first one stands."""
        resolved = self
        if self.start is None and self.tokens:
            resolved = self.model_copy(update={"start": self._site(anatomy).start})
        if self.init is None or self.ids is not None:
            return resolved
        if anatomy.words is None:
            raise ValueError(
                f"init: {self.init!r} needs a tokenizer, and {anatomy.describe()} has none: adapt "
                "mmpeft.zero_shot(model, classes), give ids, or leave init out"
            )
        ids = anatomy.words(self.init)
        if len(ids) < self.tokens:
            raise ValueError(f"init: {self.init!r} has {len(ids)} tokens, fewer than tokens: {self.tokens}")
        return resolved.model_copy(update={"ids": ids})

    def _prompt(self, **options: Any) -> dict[str, Any]:
        """Return the options of the edit that all methods share."""
        words = self.init or " ".join(["X"] * self.tokens)
        ids = self.ids[: self.tokens] if self.ids else None
        shared = {"tokens": self.tokens, "start": self.start, "ids": ids}
        return {"template": f"{words} {{}}.", **shared, **options}

    def _site(self, anatomy: Anatomy) -> PromptSite:
        from mmpeft.anatomies.sites import PromptSite

        return anatomy.select(("prompt",), PromptSite, towers=self.towers)[0]


class CoOp(_Words):
    """Learned words before the class name, in the text tower's embedding (Zhou et al. 2022, arXiv:2109.01134).

    Not the frozen model at the start, unless ``init`` is what the text says.
    """

    name: ClassVar[str] = "coop"
    facts: ClassVar[Facts] = Facts(
        start="learned words take the place of the text's own",
        lacks=("vision", "denoisers", "generic", "language"),
        small={"tokens": 3},
        learns={"tokens": 4},
        rate=0.002,
        published=(
            Published("ViT-B-16", 8_192, classes=100),
            Published("ViT-B-16", 2_048, {"tokens": 4}, classes=100),
            Published("ViT-B-16", 819_200, {"tokens": 16, "class_specific": True}, classes=100),
            Published("RN50", 8_192, classes=100),
        ),
    )
    layered: ClassVar[bool] = False

    tokens: int = Field(default=16, ge=1)
    position: Literal["end", "middle", "front"] = "end"
    """Where the class name stands among the learned words."""
    class_specific: bool = False
    """Learned words for each class; such an adapter knows no other classes."""
    classes: int | None = Field(default=None, ge=1)
    """Number of classes with words of their own; the classifier says it where it is not given."""

    @model_validator(mode="after")
    def _for_each(self) -> Self:
        if self.classes is not None and not self.class_specific:
            raise ValueError(f"classes: {self.classes} without class_specific: all classes share the learned words")
        return self

    @property
    def binds_classes(self) -> bool:
        """When each has words of its own."""
        return self.class_specific

    def resolve(self, anatomy: Anatomy) -> Self:
        """Look up the words, and count the classes."""
        from mmpeft.anatomies.sites import LogitsSite

        resolved = super().resolve(anatomy)
        if not self.class_specific or self.classes is not None:
            return resolved
        site = anatomy.select(("logits",), LogitsSite)[0]
        return resolved.model_copy(update={"classes": site.classes})

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One prompt at the words of the text tower."""
        from mmpeft.anatomies.sites import LogitsSite
        from mmpeft.edits import Prompt

        site = self._site(anatomy)
        for logits in anatomy.sites(LogitsSite):
            if self.classes not in (None, logits.classes):
                raise ValueError(f"classes: {self.classes}, and the model has {logits.classes}")
        template = self._prompt(position=self.position, classes=self.classes)
        if self.position != "end":
            words = template["template"].removesuffix(" {}.").split()
            front = self.tokens // 2 if self.position == "middle" else 0
            template["template"] = " ".join([*words[:front], "{}", *words[front:]]) + "."
        yield site, Prompt(site, **template)


class CoCoOp(_Words):
    """Learned words that the image moves, through a small network (Zhou et al. 2022, arXiv:2203.05557).

    Each word is v_m + net(f), with f the image's normalised features: Linear, ReLU, Linear. So the text tower runs for
    every class and image. Not the frozen model at the start.
    """

    name: ClassVar[str] = "cocoop"
    facts: ClassVar[Facts] = Facts(
        start="learned words take the place of the text's own",
        lacks=("vision", "denoisers", "generic", "language"),
        learns={"tokens": 4},
        rate=0.002,
        published=(Published("ViT-B-16", 35_360, classes=100),),
    )
    layered: ClassVar[bool] = False

    reduction: int = Field(default=16, ge=1)
    """Width of the image features over the network's hidden width."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """One prompt at the words of the text tower, fed by the features of the vision tower."""
        from mmpeft.anatomies.sites import FeaturesSite
        from mmpeft.edits import ConditionalPrompt

        site = self._site(anatomy)
        image = anatomy.select(("features",), FeaturesSite, towers="vision")[0]
        yield site, ConditionalPrompt(site, image, hidden=max(1, image.width // self.reduction), **self._prompt())


class MaPLe(_Words):
    """Prompts in both towers, those of vision a linear image of the text's (Khattak et al. 2023, arXiv:2210.03117).

    In each of the layers, text prompts p_i stand in the place of words, and G_i p_i + b_i behind the image's patches;
    they replace what the block before made of the last ones. The layers must include block 0. Not the frozen model at
    the start.
    """

    name: ClassVar[str] = "maple"
    facts: ClassVar[Facts] = Facts(
        start="learned words take the place of the text's own",
        inserts=True,
        lacks=("vision", "denoisers", "generic", "language"),
        small={"layers": "first:2"},
        learns={"layers": "first:3"},
        rate=0.003,
        published=(
            Published("ViT-B-16", 3_555_072, classes=100),
            Published("ViT-B-16", 1_185_024, {"layers": "first:3"}, classes=100),
            Published("ViT-B-16", 395_008, {"layers": "first:1"}, classes=100),
        ),
    )

    tokens: int = Field(default=2, ge=1)
    layers: str | tuple[int, ...] = Field(default="first:9", examples=["first:9", "all", [0, 1, 2]])

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """The text's prompt, then the vision tower's tokens that follow it."""
        from mmpeft.edits import CoupledTokens, Prompt

        text, vision = self._site(anatomy), _sequence(anatomy, self.towers)
        layers = _layers(self.layers, min(len(text.blocks), len(vision.blocks)))
        prompt = Prompt(text, **self._prompt(layers=layers))
        yield text, prompt
        yield vision, CoupledTokens(vision, prompt, layers=layers)


class IVLP(_Words):
    """Independent deep prompts in both towers, or in one: VPT and language prompting of CLIP (arXiv:2210.03117).

    ``tokens: 0`` leaves the text alone, ``vision_tokens: 0`` the images. The layers must include block 0.
    Not the frozen model at the start.
    """

    name: ClassVar[str] = "ivlp"
    facts: ClassVar[Facts] = Facts(
        start="learned words take the place of the text's own",
        inserts=True,
        lacks=("vision", "denoisers", "generic", "language"),
        small={"layers": "first:2"},
        rate=0.003,
        published=(
            Published("ViT-B-16", 30_720, classes=100),
            Published("ViT-B-16", 46_080, {"tokens": 4, "vision_tokens": 4, "layers": "first:9"}, classes=100),
            Published("ViT-B-16", 73_728, {"tokens": 0, "vision_tokens": 8}, classes=100),
            Published("ViT-B-16", 24_576, {"tokens": 4, "vision_tokens": 0}, classes=100),
        ),
    )

    tokens: int = Field(default=2, ge=0)
    """Number of learned words; 0 leaves the text tower alone."""
    vision_tokens: int = Field(default=2, ge=0)
    """Number of tokens among the image's patches; 0 leaves the vision tower alone."""

    def plan(self, anatomy: Anatomy) -> Iterator[tuple[Site, Edit]]:
        """A prompt in the text tower, tokens in the vision tower."""
        from mmpeft.edits import Prompt, Tokens

        if not self.tokens and not self.vision_tokens:
            raise ValueError(f"tokens: 0 and vision_tokens: 0: {self.name} has nothing to learn")
        if self.tokens:
            text = self._site(anatomy)
            yield text, Prompt(text, **self._prompt(layers=_layers(self.layers, len(text.blocks))))
        if self.vision_tokens:
            site = _sequence(anatomy, self.towers)
            layers = _layers(self.layers, len(site.blocks))
            yield site, Tokens(site, tokens=self.vision_tokens, layers=layers, std=0.02, before_norm=True)


class PromptSRC(IVLP):
    """Independent prompts kept close to the frozen model by three losses (Khattak et al. 2023, arXiv:2307.06948).

    The losses are the task's: ``mmpeft.objectives.self_regulated``. With ``train.average`` the adapter is the
    Gaussian-weighted mean over the epochs, as in the paper.
    """

    name: ClassVar[str] = "promptsrc"
    facts: ClassVar[Facts] = Facts(
        start="learned words take the place of the text's own",
        inserts=True,
        lacks=("vision", "denoisers", "generic", "language"),
        small={"layers": "first:2"},
        learns={"layers": "first:3"},
        rate=0.003,
        published=(Published("ViT-B-16", 46_080, classes=100),),
    )

    tokens: int = Field(default=4, ge=0)
    vision_tokens: int = Field(default=4, ge=0)
    layers: str | tuple[int, ...] = Field(default="first:9", examples=["first:9", "all", [0, 1, 2]])
    text_weight: float = Field(default=25.0, ge=0)
    """Weight of the mean distance of the class embeddings to the frozen ones."""
    image_weight: float = Field(default=10.0, ge=0)
    """Weight of the mean distance of the image features to the frozen ones."""
    logits_weight: float = Field(default=1.0, ge=0)
    """Weight of the divergence of the predictions from the frozen ones."""


def _sequence(anatomy: Anatomy, towers: str | tuple[str, ...]) -> SequenceSite:
    from mmpeft.anatomies.sites import SequenceSite

    return anatomy.select(("tokens",), SequenceSite, towers=towers)[0]


def _layers(layers: str | tuple[int, ...], count: int) -> list[int]:
    from mmpeft.anatomies.towers import choose_layers

    chosen = sorted(choose_layers(layers, count))
    if 0 not in chosen:
        raise ValueError(f"layers: {layers!r}: prompts enter before block 0, which has to be among them")
    return chosen
