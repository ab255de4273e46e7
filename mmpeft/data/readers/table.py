"""CSV and parquet tables with a column of image paths and a column of labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.samples import Sample, listed
from mmpeft.data.splits import ALIASES
from mmpeft.optional import require
from mmpeft.settings import nearest


def read_table(config: DataConfig) -> list[Sample]:
    """Return one sample per row; paths are relative to the table.

    Raises:
        ValueError: If the table or a column is missing, images do not exist, or a row names no known split.
        ImportError: If pandas is not installed.
    """
    path = Path(str(config.path)).expanduser()
    table = _load(path)
    for key in ("image_column", "label_column", "split_column"):
        column = getattr(config, key)
        if column is not None and column not in table.columns:
            raise ValueError(f"data.{key}: {path} has no column {column!r}{nearest(column, map(str, table.columns))}")
    images = [str(image) for image in table[config.image_column]]
    absent = [image for image in images if not (path.parent / image).is_file()]
    if absent:
        raise ValueError(
            f"data {path}, column {config.image_column!r}: {len(absent)} of {len(images)} images do not exist under "
            f"{path.parent}: {listed(absent)}"
        )
    splits = _splits(table, path, config)
    labels = [_label(label) for label in table[config.label_column]]
    return [
        Sample(id=image, label=label, open=partial(Image.open, path.parent / image), split=split)
        for image, label, split in zip(images, labels, splits, strict=True)
    ]


def _load(path: Path) -> Any:
    pandas = require("pandas", "mmpeft[data]")
    if not path.is_file():
        raise ValueError(f"data.path: {str(path)!r} is not a file")
    if path.suffix == ".csv":
        return pandas.read_csv(path)
    if path.suffix == ".parquet":
        return pandas.read_parquet(path)
    raise ValueError(f"data.path: {str(path)!r} is neither .csv nor .parquet")


def _label(value: object) -> str | int | None:
    if value is None or value != value:  # pandas gives a missing value as NaN
        return None
    return int(value) if isinstance(value, int | float) and value == int(value) else str(value)


def _splits(table: Any, path: Path, config: DataConfig) -> list[str | None]:
    if config.split_column is None:
        return [None] * len(table)
    named = [ALIASES.get(str(value).lower()) for value in table[config.split_column]]
    unknown = {str(value) for value, name in zip(table[config.split_column], named, strict=True) if name is None}
    if unknown:
        rows = sum(name is None for name in named)
        raise ValueError(
            f"data {path}, column {config.split_column!r}: {rows} of {len(named)} rows are in no known split "
            f"({listed(sorted(unknown))}): use train, validation or test"
        )
    return named
