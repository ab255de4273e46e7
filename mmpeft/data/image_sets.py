"""From a configuration to three splits, ready for a model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureError, named, verify_picture
from mmpeft.data.readers import CLASS_NAMES, READERS
from mmpeft.data.samples import DataSplits, ImageSplit, Sample, listed
from mmpeft.data.splits import cut_splits, keep_half, name_classes
from mmpeft.data.transforms import Transform, make_transforms


def load_data(config: DataConfig, model_or_transform: nn.Module | Transform) -> DataSplits:
    """Read a data set, split it, and prepare its images as the model wants them (or by a transform of your own).

    Raises:
        ValueError: For anything wrong with the data: files, columns or classes are named, and how many there are.
    """
    samples = READERS[config.name](config)
    known = CLASS_NAMES[config.name](config) if config.name in CLASS_NAMES else None
    classes, labels = name_classes(samples, config, known)
    if config.half is not None:
        samples, labels, classes = keep_half(samples, labels, classes, config.half)
    cut = cut_splits(samples, labels, classes, config)
    if config.verify:
        verify_images([sample for part in cut.values() for sample, _ in part], config)
    train_transform, transform = make_transforms(config, model_or_transform)
    splits = {
        name: ImageSplit([sample for sample, _ in part], [label for _, label in part], classes,
                         train_transform if name == "train" else transform)
        for name, part in cut.items()
    }  # fmt: skip
    return DataSplits(splits["train"], splits["validation"], splits["test"], classes)


def verify_images(samples: Sequence[Sample], config: DataConfig) -> None:
    """Decode every image once (JPEGs at a fraction of their size).

    Raises:
        ValueError: If some can't be read; it names them and says how many there are.
    """
    broken = [f"{sample.id} ({reason})" for sample in samples if (reason := _unreadable(sample))]
    if broken:
        raise ValueError(
            f"data {config.path or config.name}: {len(broken)} of {len(samples)} images can't be read: {listed(broken)}"
        )


def _unreadable(sample: Sample) -> str:
    """Return why a picture can't be read, or nothing."""
    try:
        with named(sample.id):
            verify_picture(sample.open)
    except PictureError as error:
        return error.reason
    return ""
