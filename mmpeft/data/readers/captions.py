"""A folder of images with captions: JSON, CSV as Hugging Face's imagefolder has it, Karpathy's splits, or x.txt."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureFile
from mmpeft.data.readers.folder import images_under
from mmpeft.data.samples import Sample, listed
from mmpeft.data.splits import ALIASES
from mmpeft.data.text_files import read_json, read_text

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
        Sample(name, None, PictureFile(f"{root}/{name}"), splits[name], caption=tuple(texts))
        for name, texts in captions.items()
    ]


def _find(root: Path, config: DataConfig) -> Path:
    if config.caption_path is not None:
        file = Path(config.caption_path).expanduser()
        if not file.is_file():
            raise ValueError(f"data.caption_path: {str(file)!r} is not a file")
        return file
    files = caption_files(root)
    if len(files) != 1:
        raise ValueError(f"data.caption_path: missing, and {root} has {len(files)} of the files {', '.join(FILES)}")
    return files[0]


def caption_files(root: Path) -> list[Path]:
    """Return the files of captions in a folder; the folder itself where there are text files instead."""
    files = [root / name for name in FILES if (root / name).is_file()]
    return files if files or not any(root.rglob("*.txt")) else [root]


def _read(file: Path) -> Iterator[Row]:
    if file.is_dir():
        yield from _read_beside(file)
        return
    if file.suffix == ".csv":
        yield from _read_table(file)
        return
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"data {file}: captions by image name, or Karpathy's key 'images', are wanted at the top")
    yield from _read_karpathy(content["images"], file) if "images" in content else _read_names(content, file)


def _read_beside(root: Path) -> Iterator[Row]:
    """Read the caption of x.png from x.txt; the first of several images of that name has it."""
    names = {path.with_suffix("").relative_to(root): path for path in reversed(images_under(root))}
    for path in sorted(root.rglob("*.txt")):
        relative = path.relative_to(root)
        image = names.get(relative.with_suffix(""))
        name = relative.as_posix() if image is None else image.relative_to(root).as_posix()
        yield Row(relative.as_posix(), name, read_text(path).strip(), None)


def _read_table(file: Path) -> Iterator[Row]:
    table = csv.DictReader(StringIO(read_text(file), newline=""))
    try:
        lacking = {"file_name", "text"} - set(table.fieldnames or ())
        if lacking:
            raise ValueError(f"data {file}: no column {' or '.join(sorted(lacking))} (it has {table.fieldnames})")
        for row in table:
            yield Row(f"line {table.line_num}", row["file_name"] or "", row["text"] or "", row.get("split") or None)
    except csv.Error as error:
        raise ValueError(f"data {file}: line {table.line_num}: this is no CSV: {error}") from None


def _read_names(content: dict[str, Any], file: Path) -> Iterator[Row]:
    for name, texts in content.items():
        for text in texts if isinstance(texts, list) else [texts]:
            if not isinstance(text, str):
                raise ValueError(f"data {file}: key {name!r}: captions are texts, not {type(text).__name__}")
            yield Row(f"key {name!r}", name, text, None)


def _read_karpathy(images: Any, file: Path) -> Iterator[Row]:
    for number, image in enumerate(images if isinstance(images, list) else [images]):
        match image:
            case {"filename": str(name), "sentences": list(sentences)}:
                parts = (str(image.get("filepath") or ""), name)
                split = None if image.get("split") is None else str(image["split"])
            case _:
                raise ValueError(f"data {file}: images[{number}]: an object with filename and sentences is wanted")
        for sentence in sentences:
            if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
                raise ValueError(f"data {file}: images[{number}]: a sentence has its text as 'raw'")
            yield Row(f"images[{number}]", "/".join(part for part in parts if part), sentence["raw"], split)


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
        f"{len(faulty)} of {len(rows)} captions {what}: {listed(faulty)}" for what, faulty in wrong.items() if faulty
    ]
    bare = [name for name in names if name not in captioned]
    if bare:
        problems.append(f"{len(bare)} of {len(names)} images under {root} have no caption: {listed(bare)}")
    if problems:
        raise ValueError(f"data {file}: {'; '.join(problems)}")
