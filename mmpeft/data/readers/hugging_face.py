"""Hugging Face data sets: by name on the hub, or a local folder (images with metadata.csv, parquet, save_to_disk)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureFile, checked_file
from mmpeft.data.readers.labels import class_label, class_labels
from mmpeft.data.readers.paths import listed_paths
from mmpeft.data.samples import Sample
from mmpeft.data.splits import ALIASES
from mmpeft.optional import require
from mmpeft.settings import nearest


def read_datasets(config: DataConfig) -> list[Sample]:
    """Return the rows of the splits named like train, validation or test; other splits are left out.

    A single split is taken for data yet to be split.

    Raises:
        ValueError: If the data set can't be loaded, or a column is missing.
        ImportError: If datasets is not installed.
    """
    datasets = require("datasets", "mmpeft[data]")
    loaded = _load(datasets, config)
    known = {name: ALIASES[name.lower()] for name in loaded if name.lower() in ALIASES}
    if len(loaded) > 1 and "train" not in known.values():
        raise ValueError(f"data {config.path}: no training split among {', '.join(loaded)}")
    pairs = known.items() if len(loaded) > 1 else [(name, None) for name in loaded]
    return [sample for name, split in pairs for sample in _read_split(datasets, loaded[name], name, split, config)]


def _load(datasets: Any, config: DataConfig) -> dict[str, Any]:
    path = str(config.path)
    try:
        if any((Path(path) / marker).exists() for marker in ("dataset_dict.json", "state.json")):
            loaded = datasets.load_from_disk(path)
        elif Path(path).is_dir():
            loaded = datasets.load_dataset(path, config.subset)
        else:
            name, _, revision = path.partition("@")
            loaded = datasets.load_dataset(name, config.subset, revision=revision or None)
    except Exception as error:  # whatever a reader of one of its many formats meets with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"data.path: {path!r} is neither a local data set nor one the hub gave: {reason}") from error
    return loaded if isinstance(loaded, datasets.DatasetDict) else {"all": loaded}


def _read_split(datasets: Any, rows: Any, name: str, split: str | None, config: DataConfig) -> list[Sample]:
    for key in ("image_column", "label_column"):
        column = getattr(config, key)
        if column not in rows.column_names:
            raise ValueError(f"data.{key}: {config.path} has no column {column!r}{nearest(column, rows.column_names)}")
    feature = rows.features[config.image_column]
    if not isinstance(feature, datasets.Image):
        raise ValueError(f"data.image_column: {config.image_column!r} of {config.path} holds no images but {feature}")
    label_feature = rows.features[config.label_column]
    names = label_feature.names if isinstance(label_feature, datasets.ClassLabel) else None
    encoded = rows.cast_column(config.image_column, datasets.Image(decode=False))
    where = f"data {config.path}, column {config.label_column!r} of {name}"
    labels = class_labels(rows[config.label_column], where, partial(_label, names=names))
    return [
        Sample(f"{name}/{number}", label, PictureRow(f"{name}/{number}", encoded, number, config), split)
        for number, label in enumerate(labels)
    ]


def _label(value: Any, names: list[str] | None) -> str | int | None:
    if names is not None and value is not None and 0 <= value < len(names):
        return names[value]
    label = class_label(value)
    return str(value) if isinstance(label, int) and isinstance(value, float) else label


@dataclass(frozen=True, slots=True)
class PictureRow(PictureFile):
    """A picture in a row: its bytes, or the name of its file; ``path`` is what it is called."""

    rows: Any
    number: int
    config: DataConfig

    def _source(self) -> str | BytesIO:
        encoded = self.rows[self.number][self.config.image_column]
        if encoded is None or (encoded["bytes"] is None and encoded["path"] is None):
            raise ValueError("the row has none")
        if encoded["bytes"] is not None:
            return BytesIO(encoded["bytes"])
        (file,) = listed_paths(_home(self.config), [encoded["path"]], self.config, str(self.config.path))
        return checked_file(file)


def _home(config: DataConfig) -> Path:
    """Return the folder in which the files of a data set lie: its own, or the one where the hub's are kept."""
    local = Path(str(config.path)).expanduser()
    return local if local.is_dir() else Path(require("datasets", "mmpeft[data]").config.HF_CACHE_HOME)
