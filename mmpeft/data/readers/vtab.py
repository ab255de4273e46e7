"""VTAB-1k in NOAH's text form: ``ROOT/cifar/train800.txt`` and so on, with lines ``path label``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.protocols.vtab import VTAB
from mmpeft.data.readers.layout import dataset_folder, require_files
from mmpeft.data.samples import Sample

TUNE = {"train800.txt": "train", "val200.txt": "validation", "test.txt": "test"}
RETRAIN = {"train800val200.txt": "train", "test.txt": "test"}


def read_vtab(config: DataConfig) -> list[Sample]:
    """Return 800, 200 and the test images, or with ``validation: null`` all 1,000 to train on.

    Raises:
        ValueError: If the folder or a list is missing, or a line is not ``path label``.
    """
    folder = dataset_folder(config, (str(config.dataset), *VTAB[str(config.dataset)].spellings))
    lists = RETRAIN if config.validation is None else TUNE
    require_files(folder, lists, config)
    return [sample for name, split in lists.items() for sample in _read(folder, name, split)]


def name_vtab(config: DataConfig) -> tuple[str, ...]:
    """Return the labels as names: the text form has no other."""
    return tuple(str(label) for label in range(VTAB[str(config.dataset)].classes))


def _read(folder: Path, name: str, split: str) -> list[Sample]:
    samples = []
    for number, line in enumerate((folder / name).read_text(encoding="utf-8").splitlines(), 1):
        path, _, label = line.strip().rpartition(" ")
        if not path or not label.isdecimal():
            raise ValueError(f"data {folder / name}:{number}: {line!r} is not 'path label'")
        samples.append(Sample(path, int(label), partial(Image.open, folder / path), split))
    return samples
