"""FGVC with VPT's splits: ``ROOT/cub/train.json``, ``val.json`` and ``test.json``, each ``{file: class}``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.protocols.fgvc import FGVC
from mmpeft.data.readers.layout import dataset_folder, require_classes, require_files
from mmpeft.data.samples import Sample

LISTS = {"train.json": "train", "val.json": "validation", "test.json": "test"}


def read_fgvc(config: DataConfig) -> list[Sample]:
    """Return the images of all three lists.

    Raises:
        ValueError: If the folder or a list is missing, or the number of classes is another.
    """
    task = FGVC[str(config.dataset)]
    folder = dataset_folder(config, (str(config.dataset), *task.spellings))
    require_files(folder, LISTS, config)
    samples = [sample for name, split in LISTS.items() for sample in _read(folder, name, folder / task.images, split)]
    require_classes(len({sample.label for sample in samples}), task.classes, config)
    return samples


def _read(folder: Path, name: str, images: Path, split: str) -> list[Sample]:
    labels: dict[str, str | int] = json.loads((folder / name).read_text(encoding="utf-8"))
    return [Sample(path, label, partial(Image.open, images / path), split) for path, label in labels.items()]
