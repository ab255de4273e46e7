"""Where samples come from, and how they are split. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, Strict, model_validator

from mmpeft.settings import Settings

Count = Annotated[int, Strict(), Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]

DIGITS_PROTOCOL: dict[str, Any] = {"per_class": 20, "validation": 20, "test": "rest"}
"""What `name: digits` means unless the configuration says otherwise: few images, because all would be too easy."""
SCENES_PROTOCOL: dict[str, Any] = {"per_class": 16, "validation": 16, "test": "rest", "style": "sketch"}
"""What `name: scenes` means: a style that `tiny/clip` never saw, and as few images of it."""
PROTOCOLS = {"digits": DIGITS_PROTOCOL, "scenes": SCENES_PROTOCOL}


class DataConfig(Settings):
    """One data set and its splits, which depend on nothing but the samples' ids and these values."""

    name: Literal["digits", "scenes", "folder", "table", "datasets", "masks", "captions"]
    """``digits``: scikit-learn's 1,797 handwritten digits; ``scenes``: 1,920 drawn pictures of 12 shapes; ``folder``:
    images in one folder per class; ``table``: a CSV or parquet file with a column of paths; ``datasets``: a Hugging
    Face data set, by name or in a local folder; ``masks``: a folder of images and one of masks; ``captions``: a folder
    of images and a file of captions."""
    path: str | None = None
    """The folder, the table, or the name on the hub (``OWNER/NAME``, ``OWNER/NAME@REVISION``)."""
    style: Literal["plain", "shaded", "sketch", "hatched", "neon", "stippled"] | None = None
    """How scenes are drawn; ``tiny/clip`` was pretrained on ``plain`` and ``shaded`` (scenes: sketch)."""
    mask_path: str | None = None
    """The folder of masks: a PNG named like each image, its values indices of ``classes``, 255 where there is none."""
    caption_path: str | None = None
    """The file of captions; null looks for captions.json, captions.csv or metadata.csv in ``path``."""
    image_column: str = "image"
    """Column of a table (paths, relative to the table) or of a data set (images)."""
    label_column: str = "label"
    """Column of the class: a name or a number."""
    split_column: str | None = None
    """Column of a table that says ``train``, ``validation`` or ``test``; null cuts the splits by the shares below."""
    subset: str | None = None
    """Configuration of a Hugging Face data set that has several."""
    classes: tuple[str, ...] | None = None
    """The class names in order; null takes them from the data, sorted (masks: from ``mask_path``/classes.txt, one name
    per line). Any other label is an error."""
    per_class: PositiveInt | None = None
    """At most this many training images of each class, or in all where images have no class (masks, captions); null
    takes all (digits: 20, scenes: 16)."""
    validation: Count | Share = 0.1
    """Images per class, or share of each class, for choosing the model; unused if the data has such a split (digits:
    20, scenes: 16)."""
    test: Count | Share | Literal["rest"] = 0.2
    """Images per class, or share of each class, for the report; ``rest``: all that ``per_class`` and ``validation``
    left over; unused if the data has such a split (digits, scenes: rest)."""
    split_seed: NonNegativeInt = 0
    """Which images ``per_class`` picks (and so which are the ``rest``); the validation images never change with it."""
    augment: tuple[Literal["flip", "crop", "rotate", "colour"], ...] = ()
    """Random changes of training images: mirror, crop and resize, turn up to 10 degrees, change colours."""
    verify: bool = True
    """Open every image once before training, so that all broken ones are named at once."""

    @model_validator(mode="before")
    @classmethod
    def _protocol(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("name") in PROTOCOLS:
            return {**PROTOCOLS[values["name"]], **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.name in PROTOCOLS and self.path is not None:
            raise ValueError(f"path: {self.path!r} has no meaning for name: {self.name}, which need no files of yours")
        if (self.style is None) == (self.name == "scenes"):
            raise ValueError(f"style: {self.style!r} can't go with name: {self.name}; scenes, and only they, have one")
        if self.name not in PROTOCOLS and self.path is None:
            raise ValueError(f"path: missing; name: {self.name} needs the folder, table or data set")
        if self.test == "rest" and self.per_class is None:
            raise ValueError("test: rest needs per_class: without it training takes all images and nothing is left")
        for key, owner in (("mask_path", "masks"), ("caption_path", "captions")):
            if getattr(self, key) is not None and self.name != owner:
                raise ValueError(f"{key}: {getattr(self, key)!r} is for name: {owner}, not for name: {self.name}")
        if self.name == "masks" and self.mask_path is None:
            raise ValueError("mask_path: missing; name: masks needs the folder of masks beside that of images")
        if self.split_column is not None and self.name != "table":
            raise ValueError(f"split_column: {self.split_column!r} is for name: table, not for name: {self.name}")
        return self
