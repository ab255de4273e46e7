"""A folder of images with captions: JSON, CSV as Hugging Face's imagefolder has it, Karpathy's splits, or x.txt."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.readers.folder import images_under
from mmpeft.data.samples import Sample, listed
from mmpeft.data.splits import ALIASES

FILES = ("captions.json", "captions.csv", "metadata.csv")
SPLITS = {**ALIASES, "restval": "train"}
"""The names of splits, with that of the COCO images that Karpathy's splits leave over."""


class Row(NamedTuple):
    """One caption: where it stands in the file, the image's path under the folder, the text, and the split."""

    place: str
    image: str
    text: str
    split: str | None


def read_captions(config: DataConfig) -> list[Sample]:
    """Return one sample per image, with all its captions.

    Raises:
        ValueError: If the folder or the file is missing or can't be read, a caption has no text, image or known split,
            or an image has no caption.
    """
    root = Path(str(config.path)).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.path: {str(root)!r} is not a folder")
    return captioned(root, _find(root, config))


def captioned(root: Path, file: Path) -> list[Sample]:
    """Return one sample per image in a folder, with all its captions in a file (see `caption_files`).

    Raises:
        ValueError: As `read_captions`.
    """
    rows = list(_read(file))
    names = [path.relative_to(root).as_posix() for path in images_under(root)]
    _refuse_wrong(rows, file, root, names)
    captions: dict[str, list[str]] = {name: [] for name in names}
    splits: dict[str, str | None] = {}
    for row in rows:
        captions[row.image].append(row.text)
        splits[row.image] = None if row.split is None else SPLITS[row.split.lower()]
    return [
        Sample(name, None, partial(Image.open, root / name), splits[name], caption=tuple(texts))
        for name, texts in captions.items()
    ]


def _find(root: Path, config: DataConfig) -> Path:
    if config.caption_path is not None:
        file = Path(config.caption_path).expanduser()
        if not file.is_file():
            raise ValueError(f"data.caption_path: {str(file)!r} is not a file")
        return file
    found = caption_files(root)
    if len(found) != 1:
        raise ValueError(f"data.caption_path: missing, and {root} has {len(found)} of the files {', '.join(FILES)}")
    return found[0]


def caption_files(root: Path) -> list[Path]:
    """Return the files of captions in a folder; the folder itself where there are text files instead."""
    found = [root / name for name in FILES if (root / name).is_file()]
    return found if found or not any(root.rglob("*.txt")) else [root]


def _read(file: Path) -> Iterator[Row]:
    if file.is_dir():
        yield from _read_beside(file)
        return
    if file.suffix == ".csv":
        yield from _read_table(file)
        return
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"data {file}: this is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"data {file}: captions by image name, or Karpathy's key 'images', are wanted at the top")
    yield from _read_karpathy(content["images"]) if "images" in content else _read_names(content)


def _read_beside(root: Path) -> Iterator[Row]:
    """Read the caption of x.png from x.txt; the first of several images of that name has it."""
    names = {path.with_suffix("").relative_to(root): path for path in reversed(images_under(root))}
    for path in sorted(root.rglob("*.txt")):
        own = path.relative_to(root)
        image = names.get(own.with_suffix(""))
        name = own.as_posix() if image is None else image.relative_to(root).as_posix()
        yield Row(own.as_posix(), name, path.read_text(encoding="utf-8").strip(), None)


def _read_table(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        lacking = {"file_name", "text"} - set(table.fieldnames or ())
        if lacking:
            raise ValueError(f"data {file}: no column {' or '.join(sorted(lacking))} (it has {table.fieldnames})")
        for row in table:
            yield Row(f"line {table.line_num}", row["file_name"], row["text"] or "", row.get("split") or None)


def _read_names(content: dict[str, Any]) -> Iterator[Row]:
    for name, texts in content.items():
        for text in [texts] if isinstance(texts, str) else texts:
            yield Row(f"key {name!r}", name, text, None)


def _read_karpathy(images: list[dict[str, Any]]) -> Iterator[Row]:
    for number, image in enumerate(images):
        name = "/".join(part for part in (image.get("filepath"), image["filename"]) if part)
        for sentence in image["sentences"]:
            yield Row(f"images[{number}]", name, sentence["raw"], image.get("split"))


def _refuse_wrong(rows: list[Row], file: Path, root: Path, names: list[str]) -> None:
    known, captioned = set(names), {row.image for row in rows}
    wrong = {
        f"belong to no image under {root}": [f"{row.place} ({row.image})" for row in rows if row.image not in known],
        "have no text": [f"{row.place} ({row.image})" for row in rows if not row.text.strip()],
        "are in no known split": [
            f"{row.place} ({row.split})" for row in rows if row.split is not None and row.split.lower() not in SPLITS
        ],
    }
    problems = [
        f"{len(found)} of {len(rows)} captions {what}: {listed(found)}" for what, found in wrong.items() if found
    ]
    bare = [name for name in names if name not in captioned]
    if bare:
        problems.append(f"{len(bare)} of {len(names)} images under {root} have no caption: {listed(bare)}")
    if problems:
        raise ValueError(f"data {file}: {'; '.join(problems)}")
