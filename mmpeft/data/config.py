"""Where samples come from, and how they are split. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, Strict, model_validator

from mmpeft.data.protocols import DATASETS
from mmpeft.settings import Settings, nearest

Count = Annotated[int, Strict(), Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Part = Annotated[float, Field(gt=0, le=1)]


def _as_path(value: str) -> str:
    parts = [len(part.encode(errors="replace")) for part in value.split("/")]
    if "\0" in value or max(parts) > 255 or len(value) > 4000:
        shown = ascii(value) if len(value) < 100 else f"{value[:100]!a} ... ({len(value)} characters)"
        raise ValueError(f"{shown} can't be the name of a file or folder")
    return value


FilePath = Annotated[str, AfterValidator(_as_path)]
"""Where data lie: a path, or a name on a hub."""

DIGITS_PROTOCOL: dict[str, Any] = {"per_class": 20, "validation": 20, "test": "rest"}
"""What `name: digits` means unless the configuration says otherwise: few images, because all would be too easy."""
SCENES_PROTOCOL: dict[str, Any] = {"per_class": 16, "validation": 16, "test": "rest", "style": "sketch"}
"""What `name: scenes` means: a style that `tiny/clip` never saw, and as few images of it."""
PROTOCOLS: dict[str, dict[str, Any]] = {
    "digits": DIGITS_PROTOCOL,
    "scenes": SCENES_PROTOCOL,
    "vtab": {"fit": "whole"},
}
"""What a name means unless the configuration says otherwise."""
EMBEDDED = ("digits", "scenes")
"""Data that need no files."""
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "dataset": tuple(DATASETS),
    "style": ("scenes",),
    "mask_path": ("masks",),
    "caption_path": ("captions",),
    "image_column": ("table", "datasets"),
    "label_column": ("table", "datasets"),
    "split_column": ("table",),
    "subset": ("datasets",),
    "allow_outside": ("table", "datasets", "vtab", "fgvc", "few_shot"),
}
"""Keys that only some names know."""


class DataConfig(Settings):
    """One data set and its splits, which depend on nothing but the samples' ids and these values."""

    name: Literal["digits", "scenes", "folder", "table", "datasets", "masks", "captions", "vtab", "fgvc", "few_shot"]
    """``digits``: scikit-learn's 1,797 handwritten digits; ``scenes``: 1,920 drawn pictures of 12 shapes; ``folder``:
    images in one folder per class; ``table``: a CSV or parquet file with a column of paths; ``datasets``: a Hugging
    Face data set, by name or in a local folder; ``masks``: a folder of images and one of masks; ``captions``: a folder
    of images and a file of captions; ``vtab``, ``fgvc``, ``few_shot``: a data set of VTAB-1k, of FGVC, or of the 11 on
    which CLIP is adapted."""
    path: FilePath | None = None
    """The folder, the table, or the name on the hub (``OWNER/NAME``, ``OWNER/NAME@REVISION``); of ``vtab``, ``fgvc``
    and ``few_shot`` the folder that holds a folder for each data set."""
    dataset: str | None = None
    """Which data set of ``vtab``, ``fgvc`` or ``few_shot``: ``cifar``, ``cub``, ``oxford_pets`` ..."""
    style: Literal["plain", "shaded", "sketch", "hatched", "neon", "stippled"] | None = None
    """How scenes are drawn; ``tiny/clip`` was pretrained on ``plain`` and ``shaded`` (scenes: sketch)."""
    mask_path: FilePath | None = None
    """The folder of masks: a PNG named like each image, its values indices of ``classes``, 255 where there is none."""
    caption_path: FilePath | None = None
    """The file of captions; null looks for captions.json, captions.csv or metadata.csv in ``path``, and without any
    reads x.txt beside x.png."""
    image_column: str = "image"
    """Column of a table (paths, relative to the table) or of a data set (images)."""
    label_column: str = "label"
    """Column of the class: a name or a number."""
    allow_outside: bool = False
    """Whether paths that a table or a list names may lead out of its folder: from the root, by ``..`` or links."""
    split_column: str | None = None
    """Column of a table that says ``train``, ``validation`` or ``test``; null cuts the splits by the shares below."""
    subset: str | None = None
    """Configuration of a Hugging Face data set that has several."""
    classes: tuple[str, ...] | None = None
    """The class names in order; null takes them from the data, sorted (masks: from ``mask_path``/classes.txt, one name
    per line). Any other label is an error."""
    half: Literal["base", "new"] | None = None
    """Only the first half of the classes in their order (``base``, the larger one of an odd number) or only the others
    (``new``): images and labels of the rest are gone."""
    shots: PositiveInt | None = None
    """K training images of each class, and min(K, 4) for validation, drawn from the data's own splits if it has them:
    short for ``per_class: K, validation: min(K, 4)``."""
    per_class: PositiveInt | None = None
    """At most this many training images of each class, or in all where images have no class (masks, captions); null
    takes all (digits: 20, scenes: 16)."""
    validation: Count | Share | None = 0.1
    """Images per class, or share of each class, for choosing the model; unused if the data has such a split (digits:
    20, scenes: 16). null trains on these images too; ``train.monitor`` must then be null."""
    test: Count | Share | Literal["rest"] = 0.2
    """Images per class, or share of each class, for the report; ``rest``: all that ``per_class`` and ``validation``
    left over; unused if the data has such a split (digits, scenes: rest)."""
    split_seed: NonNegativeInt = 0
    """Which images ``per_class`` picks (and so which are the ``rest``); the validation images never change with it."""
    fit: Literal["crop", "whole"] = "crop"
    """How an image becomes the model's input size: by its shorter side, cut at the centre as the model's own
    configuration says, or squashed, whole (vtab); images with masks are always whole."""
    augment: tuple[Literal["flip", "crop", "shift", "rotate", "colour"], ...] = ()
    """Random changes of training images: mirror, crop and resize, cut at a random place of an image 8/7 as large, turn
    up to 10 degrees, change colours."""
    crop_scale: tuple[Part, Part] | None = None
    """Smallest and largest share of an image's area that ``augment: [crop]`` keeps; null means 0.7 and 1, and 0.5 and 1
    with masks."""
    verify: bool = True
    """Open every image once before training, so that all broken ones are named at once."""

    @property
    def title(self) -> str:
        """What the data is called in reports."""
        return self.dataset or self.path or self.name

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name, shots = values.get("name"), values.get("shots")
        few = {"per_class": shots, "validation": min(shots, 4)} if type(shots) is int and shots > 0 else {}
        return {**(PROTOCOLS.get(name, {}) if isinstance(name, str) else {}), **few, **values}

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        problems = [*self._foreign_keys(), *self._missing_keys(), *self._split_problems()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _foreign_keys(self) -> list[str]:
        values = {key: getattr(self, key) for key, names in ONLY_FOR.items() if self.name not in names}
        problems = [
            f"{key}: {value!r} is for name: {' or '.join(ONLY_FOR[key])}, not for name: {self.name}"
            for key, value in values.items()
            if value != type(self).model_fields[key].default
        ]
        if self.name in EMBEDDED and self.path is not None:
            problems.append(f"path: {self.path!r} has no meaning for name: {self.name}, which need no files of yours")
        return problems

    def _missing_keys(self) -> list[str]:
        problems, known = [], DATASETS.get(self.name, {})
        if self.name not in EMBEDDED and self.path is None:
            problems.append(f"path: missing; name: {self.name} needs the folder, table or data set")
        if known and self.dataset not in known:
            problems.append(f"dataset: {self.dataset!r} is not in {self.name}{nearest(str(self.dataset), known)}")
        if self.name == "scenes" and self.style is None:
            problems.append("style: missing; name: scenes needs to know how they are drawn")
        if self.name == "masks" and self.mask_path is None:
            problems.append("mask_path: missing; name: masks needs the folder of masks beside that of images")
        return problems

    def _split_problems(self) -> list[str]:
        problems = []
        if self.test == "rest" and self.per_class is None:
            problems.append("test: rest needs per_class: without it training takes all images and nothing is left")
        if self.shots is not None and self.per_class != self.shots:
            problems.append(f"shots: {self.shots} and per_class: {self.per_class} contradict each other: keep one")
        if self.shots is not None and self.validation is None:
            problems.append(f"shots: {self.shots} and validation: null: train.monitor=null keeps the last weights")
        if self.crop_scale is not None and self.crop_scale[0] > self.crop_scale[1]:
            problems.append(f"crop_scale: {list(self.crop_scale)} begins above its end")
        return problems
