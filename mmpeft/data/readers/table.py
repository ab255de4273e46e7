"""CSV and parquet tables with a column of image paths and a column of labels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureFile
from mmpeft.data.readers.labels import class_labels
from mmpeft.data.readers.paths import listed_paths
from mmpeft.data.samples import Sample, listed
from mmpeft.data.splits import ALIASES
from mmpeft.data.text_files import undecodable
from mmpeft.optional import require
from mmpeft.settings import nearest


def read_table(config: DataConfig) -> list[Sample]:
    """Return one sample per row; paths are relative to the table.

    Raises:
        ValueError: If the table can't be read or lacks a column, images do not exist or lie elsewhere, or a row names
            no class or known split.
        ImportError: If pandas is not installed.
    """
    path = Path(str(config.path)).expanduser()
    table = _load(path)
    for key in ("image_column", "label_column", "split_column"):
        column = getattr(config, key)
        if column is not None and column not in table.columns:
            raise ValueError(f"data.{key}: {path} has no column {column!r}{nearest(column, map(str, table.columns))}")
    images = [str(image) for image in table[config.image_column]]
    files = listed_paths(path.parent, images, config, f"{path}, column {config.image_column!r}")
    absent = [image for image, file in zip(images, files, strict=True) if not os.path.isfile(file)]  # noqa: PTH113
    if absent:
        raise ValueError(
            f"data {path}, column {config.image_column!r}: {len(absent)} of {len(images)} images do not exist under "
            f"{path.parent}: {listed(absent)}"
        )
    splits = _splits(table, path, config)
    labels = class_labels(table[config.label_column], f"data {path}, column {config.label_column!r}")
    return [
        Sample(image, label, PictureFile(file), split)
        for image, label, file, split in zip(images, labels, files, splits, strict=True)
    ]


def _load(path: Path) -> Any:
    pandas = require("pandas", "mmpeft[data]")
    if not path.is_file():
        raise ValueError(f"data.path: {str(path)!r} is not a file")
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"data.path: {str(path)!r} is neither .csv nor .parquet")
    try:
        if path.suffix == ".parquet":
            table = pandas.read_parquet(path)
        else:
            header = pandas.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].dropna()
            repeated = sorted(set(header[header.duplicated()]))
            if repeated:
                raise ValueError(f"a column of the same name comes twice: {listed(repeated)}")
            table = pandas.read_csv(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"data {path}: {undecodable(error)}") from None
    except (ValueError, OSError) as error:  # pandas' and Arrow's errors are of these kinds
        raise ValueError(f"data {path}: can't be read as {path.suffix[1:]}: {error}") from error
    if not len(table):
        raise ValueError(f"data {path}: there are no rows")
    return table


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
