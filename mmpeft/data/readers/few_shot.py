"""CLIP's 11 few-shot data sets as CoOp lays them out: ``ROOT/oxford_pets/split_zhou_OxfordPets.json`` and images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureFile
from mmpeft.data.protocols.few_shot import FEW_SHOT, FewShotTask
from mmpeft.data.readers.datum import Datum, read_datums
from mmpeft.data.readers.layout import dataset_folder, require_classes, require_files
from mmpeft.data.readers.paths import listed_paths
from mmpeft.data.samples import Sample, listed
from mmpeft.data.text_files import read_json, read_text
from mmpeft.settings import nearest

SHOTS = "split_fewshot"
"""The folder in which CoOp keeps the shots that it drew."""


class Entry(NamedTuple):
    """One line of a split: path under the images' folder, label, name of the class, and split."""

    path: str
    label: int
    name: str
    split: str


Entries = Callable[[Path, DataConfig], list[Entry]]


def read_few_shot(config: DataConfig) -> list[Sample]:
    """Return the images of all splits; where CoOp has drawn shots (``split_fewshot/``), only those and the test images.

    Raises:
        ValueError: If files or folders are missing, all of them are named, or the shots are of other images.
    """
    task = FEW_SHOT[str(config.dataset)]
    folder = dataset_folder(config, (task.folder,))
    entries = _entries(folder, config)
    names = [entry.path for entry in entries]
    files = listed_paths(folder / task.images, names, config, str(folder))
    samples = [
        Sample(entry.path, entry.label, PictureFile(file), entry.split)
        for entry, file in zip(entries, files, strict=True)
    ]
    if config.shots is None or not (folder / SHOTS).is_dir():
        return samples
    return _drawn(samples, folder, config)


def name_few_shot(config: DataConfig) -> tuple[str, ...]:
    """Return the class names by label, spaces for their underscores, and with the benchmark's own for some.

    Raises:
        ValueError: If the number of classes is another.
    """
    task = FEW_SHOT[str(config.dataset)]
    folder = dataset_folder(config, (task.folder,))
    if config.dataset == "imagenet":
        names = [name for _, name in imagenet_classes(folder, config)]
    else:
        names_by_label = {entry.label: entry.name for entry in _entries(folder, config)}
        names = [names_by_label[label] for label in sorted(names_by_label)]
    require_classes(len(names), task.classes, config)
    return tuple(task.renamed.get(name, name).replace("_", " ") for name in names)


def _entries(folder: Path, config: DataConfig) -> list[Entry]:
    task = FEW_SHOT[str(config.dataset)]
    special: dict[str, Entries] = {"imagenet": _imagenet, "fgvc_aircraft": _aircraft}
    if config.dataset in special:
        return special[config.dataset](folder, config)
    return _split_file(folder, task, config)


def _split_file(folder: Path, task: FewShotTask, config: DataConfig) -> list[Entry]:
    """``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``."""
    require_files(folder, (str(task.split), task.images), config)
    file = folder / str(task.split)
    parts = read_json(file)
    names = {"train": "train", "val": "validation", "test": "test"}
    if not isinstance(parts, dict) or not all(isinstance(parts.get(part), list) for part in names):
        raise ValueError(f"data {file}: lists of {', '.join(names)} are wanted")
    return [_entry(values, split, file) for part, split in names.items() for values in parts[part]]


def _entry(values: Any, split: str, file: Path) -> Entry:
    match values:
        case [str(path), int(label), str(name)]:
            return Entry(path, label, name, split)
    raise ValueError(f"data {file}: {listed([values])} is not [path, label, class name]")


def imagenet_classes(folder: Path, config: DataConfig) -> list[tuple[str, str]]:
    """Return folder and name of each class from ``classnames.txt`` (``n01440764 tench``), in the folders' order."""
    require_files(folder, ("classnames.txt",), config)
    lines = read_text(folder / "classnames.txt").splitlines()
    pairs = [line.strip().partition(" ") for line in lines if line.strip()]
    return sorted((wordnet, name) for wordnet, _, name in pairs)


def _imagenet(folder: Path, config: DataConfig) -> list[Entry]:
    """``images/train/n01440764/*.JPEG``; its validation images are the test split, as in all these papers."""
    classes = imagenet_classes(folder, config)
    images = folder / "images"
    places = {"train": "train", "val": "test"}
    require_files(images, [f"{subfolder}/{wordnet}" for subfolder in places for wordnet, _ in classes], config)
    return [
        Entry(f"{subfolder}/{wordnet}/{path.name}", label, name, split)
        for subfolder, split in places.items()
        for label, (wordnet, name) in enumerate(classes)
        for path in sorted((images / subfolder / wordnet).iterdir())
    ]


def _aircraft(folder: Path, config: DataConfig) -> list[Entry]:
    """``images_variant_train.txt`` and so on, with lines ``1025794 707-320``; ``variants.txt`` gives the order."""
    lists = {"train": "train", "val": "validation", "test": "test"}
    require_files(folder, ["variants.txt", "images", *(f"images_variant_{part}.txt" for part in lists)], config)
    variants = read_text(folder / "variants.txt").splitlines()
    labels = {name.strip(): label for label, name in enumerate(variants)}
    entries = []
    for part, split in lists.items():
        for line in read_text(folder / f"images_variant_{part}.txt").splitlines():
            image, _, name = line.strip().partition(" ")
            if name not in labels:
                raise ValueError(f"data {folder}: {name!r} of {image} is not in variants.txt{nearest(name, labels)}")
            entries.append(Entry(f"{image}.jpg", labels[name], name, split))
    return entries


def _drawn(samples: list[Sample], folder: Path, config: DataConfig) -> list[Sample]:
    """Return the shots that CoOp drew with this seed, and all test images.

    Where it drew none for validation (ImageNet), that split is of the training images left over.
    """
    path = folder / SHOTS / f"shot_{config.shots}-seed_{config.split_seed}.pkl"
    if not path.is_file():
        there = listed(sorted(file.name for file in path.parent.glob("*.pkl")))
        raise ValueError(
            f"data.split_seed: {path.parent} has no {path.name} (it has: {there}); without this folder mmpeft draws "
            "shots of its own"
        )
    drawn = read_datums(path)
    pool = {sample.id: sample for sample in samples if sample.split != "test"}
    train = _matching(drawn["train"], pool, path)
    val = _matching(drawn["val"], pool, path) if "val" in drawn else list(pool.keys() - set(train))
    shots = [replace(pool[name], split=split) for split, ids in (("train", train), ("validation", val)) for name in ids]
    return [*shots, *(sample for sample in samples if sample.split == "test")]


def _matching(datums: list[Datum], pool: dict[str, Sample], path: Path) -> list[str]:
    """Return the ids of drawn images, whose paths begin at the root of the machine that drew them."""
    matches = {datum.path: _suffix_in(datum.path, pool) for datum in datums}
    unknown = [image for image, name in matches.items() if name is None]
    if unknown:
        raise ValueError(f"data {path}: {len(unknown)} of {len(datums)} images are in no split: {listed(unknown)}")
    return [name for name in matches.values() if name is not None]


def _suffix_in(image: str, pool: dict[str, Sample]) -> str | None:
    parts = image.replace("\\", "/").split("/")
    suffixes = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in pool), None)
