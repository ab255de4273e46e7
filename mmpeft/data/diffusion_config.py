"""Data of diffusion models: pictures with texts, concepts to learn, control images. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from mmpeft.data.config import DataConfig, FilePath
from mmpeft.settings import Settings

AUGMENTATIONS = ("flip", "crop")


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Paths = Annotated[tuple[FilePath, ...], BeforeValidator(_as_tuple)]
"""One path, or several."""
Texts = Annotated[tuple[str, ...], Field(min_length=1)]
"""Several texts of the same pictures: one is drawn each time."""


class Concept(Settings):
    """Something to learn from a few pictures."""

    path: FilePath
    """The folder of its pictures; or ``scenes/STYLE/SHAPE``, drawn ones: large, on a ground without texture."""
    count: PositiveInt | None = None
    """At most so many of them; null takes all."""
    prompt: Texts | str | None = None
    """What all of them show, with the word to be learned in it: ``a photo of a <new1> cat``; of several one is drawn,
    and of a drawn scene it can name the ``{colour}`` and the like. Null takes captions of their own: those in the
    folder, which are found as for ``name: captions``, or what was drawn."""
    class_path: Paths = ()
    """The same of other pictures of its class, or of several, which are to stay as they are (prior preservation)."""
    class_prompt: Texts | str | None = None
    """What all of those show: ``a photo of a cat``. Null takes captions of their own, as Custom Diffusion does."""

    @model_validator(mode="after")
    def _consistent(self) -> Concept:
        if self.class_prompt is not None and not self.class_path:
            raise ValueError(f"class_prompt: {self.class_prompt!r} is of the pictures of class_path, which is missing")
        return self


class DiffusionData(DataConfig):
    """Pictures with texts, and how they become training samples."""

    name: Literal["captions", "scenes", "concepts"]  # type: ignore[assignment]
    """``captions``: a folder of images with a file of captions, or a text file beside each (x.png, x.txt); ``scenes``:
    drawn pictures; ``concepts``: a folder for each concept. All pictures of a concept are trained on: validation and
    test are the same pictures, plain, and their loss only says how well they are fitted."""
    concepts: tuple[Concept, ...] = ()
    """What to learn, for ``name: concepts``; several are learned together."""
    resolution: PositiveInt | None = None
    """Height and width in pixels; null takes what the denoiser was trained with."""
    bucket_step: PositiveInt | None = None
    """Give pictures a shape near their own, of at most ``resolution`` squared pixels and of sides that are multiples
    of this (64), and make batches of one shape; null cuts squares."""
    control: Literal["edges", "mask"] | None = None
    """Make control images from the pictures: their edges (Canny), or their masks in colours."""
    control_path: FilePath | None = None
    """The folder of control images, named like the pictures, for ``name: captions``."""
    shuffle_tags: bool = False
    """Put the parts of a caption, between commas, in another order each time."""
    keep_tags: NonNegativeInt = 0
    """How many parts in front stay where they are and are never dropped."""
    drop_tags: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the parts that are left out each time."""
    rescale: bool = False
    """Show concepts small on an empty ground, or zoomed in, and say so in the text (Custom Diffusion); only the part
    with the picture counts."""
    masked: bool = False
    """Learn only what a sample's mask covers: all of its classes but the first."""
    views: PositiveInt | None = None
    """How many different augmentations of each picture there are; null draws anew each time."""

    @property
    def random(self) -> bool:
        """Whether a training picture is not always the same."""
        return bool(self.augment) or self.rescale

    @model_validator(mode="after")
    def _of_diffusion(self) -> DiffusionData:
        problems = [*self._concept_problems(), *self._picture_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _missing_keys(self) -> list[str]:
        return [] if self.name == "concepts" else super()._missing_keys()

    def _concept_problems(self) -> list[str]:
        problems = []
        if (self.name == "concepts") != bool(self.concepts):
            problems.append(f"concepts: {len(self.concepts)} of them with name: {self.name}; name: concepts has some")
        if self.name == "concepts" and self.path is not None:
            problems.append(f"path: {self.path!r}: for name: concepts each concept has its own")
        if len({bool(concept.class_path) for concept in self.concepts}) > 1:
            problems.append("concepts: some have class_path and some don't: all or none")
        if self.rescale and self.name != "concepts":
            problems.append("rescale: true is for name: concepts")
        return problems

    def _picture_problems(self) -> list[str]:
        problems = []
        if self.control_path is not None and (self.control is not None or self.name != "captions"):
            problems.append(f"control_path: {self.control_path!r} is for name: captions without control")
        if self.control is not None and self.name == "concepts":
            problems.append(f"control: {self.control!r} is for name: captions or scenes")
        if self.name != "scenes" and (self.masked or self.control == "mask"):
            problems.append(f"masked, control: mask: samples of name: {self.name} have no masks")
        unknown = [name for name in self.augment if name not in AUGMENTATIONS]
        if unknown:
            problems.append(f"augment: {unknown} not among {list(AUGMENTATIONS)}, which is what generators stand")
        if self.views is not None and not self.random:
            problems.append(f"views: {self.views}: pictures are always the same without augment or rescale")
        return problems
