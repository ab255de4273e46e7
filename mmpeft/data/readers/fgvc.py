"""FGVC with VPT's splits: ``ROOT/cub/train.json``, ``val.json`` and ``test.json``, each ``{file: class}``."""

from __future__ import annotations

from pathlib import Path

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureFile
from mmpeft.data.protocols.fgvc import FGVC
from mmpeft.data.readers.labels import class_labels
from mmpeft.data.readers.layout import dataset_folder, require_classes, require_files
from mmpeft.data.readers.paths import listed_paths
from mmpeft.data.samples import Sample
from mmpeft.data.text_files import read_json

LISTS = {"train.json": "train", "val.json": "validation", "test.json": "test"}


def read_fgvc(config: DataConfig) -> list[Sample]:
    """Return the images of all three lists.

    Raises:
        ValueError: If the folder or a list is missing, or the number of classes is another.
    """
    task = FGVC[str(config.dataset)]
    folder = dataset_folder(config, (str(config.dataset), *task.spellings))
    require_files(folder, LISTS, config)
    images = folder / task.images
    samples = [sample for name, split in LISTS.items() for sample in _read(folder / name, images, split, config)]
    require_classes(len({sample.label for sample in samples}), task.classes, config)
    return samples


def _read(file: Path, images: Path, split: str, config: DataConfig) -> list[Sample]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"data {file}: it holds {type(content).__name__}, not classes by their images' names")
    names = [*content]
    labels, paths = class_labels(content.values(), f"data {file}"), listed_paths(images, names, config, str(file))
    return [
        Sample(name, label, PictureFile(path), split) for name, label, path in zip(names, labels, paths, strict=True)
    ]
