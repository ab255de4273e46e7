"""VTAB-1k in NOAH's text form: ``ROOT/cifar/train800.txt`` and so on, with lines ``path label``."""

from __future__ import annotations

from pathlib import Path

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureFile
from mmpeft.data.protocols.vtab import VTAB
from mmpeft.data.readers.layout import dataset_folder, require_files
from mmpeft.data.readers.paths import listed_paths
from mmpeft.data.samples import Sample, listed
from mmpeft.data.text_files import read_text

TUNE = {"train800.txt": "train", "val200.txt": "validation", "test.txt": "test"}
RETRAIN = {"train800val200.txt": "train", "test.txt": "test"}
LONGEST = 9
"""Digits of a label."""


def read_vtab(config: DataConfig) -> list[Sample]:
    """Return 800, 200 and the test images, or with ``validation: null`` all 1,000 to train on.

    Raises:
        ValueError: If the folder or a list is missing, or a line is not ``path label``.
    """
    folder = dataset_folder(config, (str(config.dataset), *VTAB[str(config.dataset)].spellings))
    lists = RETRAIN if config.validation is None else TUNE
    require_files(folder, lists, config)
    return [sample for name, split in lists.items() for sample in _read(folder, name, split, config)]


def name_vtab(config: DataConfig) -> tuple[str, ...]:
    """Return the labels as names: the text form has no other."""
    return tuple(str(label) for label in range(VTAB[str(config.dataset)].classes))


def _read(folder: Path, name: str, split: str, config: DataConfig) -> list[Sample]:
    images, labels = [], []
    for number, line in enumerate(read_text(folder / name).splitlines(), 1):
        image, _, label = line.strip().rpartition(" ")
        if not image or not label.isdecimal() or len(label) > LONGEST:
            raise ValueError(f"data {folder / name}:{number}: {listed([repr(line)])} is not 'path label'")
        images.append(image)
        labels.append(int(label))
    files = listed_paths(folder, images, config, str(folder / name))
    return [
        Sample(image, label, PictureFile(file), split) for image, label, file in zip(images, labels, files, strict=True)
    ]
