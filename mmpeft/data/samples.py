"""Samples, and splits of them as torch data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mmpeft.data.pictures import named

IGNORED = 255
"""The value of a mask's pixels that belong to no class: neither learned from nor scored."""

LONGEST = 400
"""Characters of a name in an error message."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image that is opened when needed."""

    id: str
    """Stable across machines and runs: splits and caches are keyed by it."""
    label: str | int | None
    """The class as the data gives it: a name, or a number; None if it is missing."""
    open: Callable[[], Image.Image]
    """Reads the image, upright (see `pictures.PictureFile`); picklable, so that workers can."""
    split: str | None = None
    """``train``, ``validation`` or ``test`` if the data says so."""
    caption: str | tuple[str, ...] | None = None
    """What the picture shows, in words; a tuple holds several ways to say it."""
    mask: Callable[[], Image.Image] | None = None
    """Reads the class of each pixel: mode ``L``, as large as the image."""
    control: Callable[[], Image.Image] | None = None
    """Reads an image that says how a generated one is to be laid out."""


class ImageSplit(Dataset[dict[str, Any]]):
    """One split: dicts with ``image`` (a float tensor, channels x height x width), ``label`` (int) and ``id`` (str)."""

    def __init__(
        self,
        samples: Sequence[Sample],
        labels: Sequence[int],
        classes: tuple[str, ...],
        transform: Callable[[Image.Image], Tensor],
    ) -> None:
        self.samples, self.labels, self.classes, self.transform = samples, labels, classes, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.samples[index]
        with named(sample.id):
            image = self.transform(sample.open().convert("RGB"))
        return {"image": image, "label": self.labels[index], "id": sample.id}

    def describe(self, index: int) -> str:
        """Say what is to be learned of a sample, for people."""
        return f"class {self.classes[self.labels[index]]!r}"

    @cached_property
    def ids(self) -> list[str]:
        """The samples' ids, in order."""
        return [sample.id for sample in self.samples]


@dataclass(frozen=True)
class DataSplits:
    """Three splits that share no sample."""

    train: ImageSplit
    """What is learned from; augmented if the configuration says so."""
    val: ImageSplit
    """What the model is selected on."""
    test: ImageSplit
    """What is reported, once."""
    classes: tuple[str, ...]
    """The class names; a label is an index into them."""
    notes: tuple[str, ...] = ()
    """What is worth saying of how they were made."""


def listed(names: Iterable[object], limit: int = 8, separator: str = ", ") -> str:
    """Join names for an error message, at most `limit` of them and none too long: ``a, b and 3 more``."""
    every = [str(name) for name in names]
    every = [name if len(name) <= LONGEST else f"{name[:LONGEST]} ... ({len(name)} characters)" for name in every]
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return separator.join(every[:limit]) + more
