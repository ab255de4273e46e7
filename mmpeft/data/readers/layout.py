"""What the readers of the field's benchmarks share: finding a data set's folder and its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mmpeft.data.config import DataConfig
from mmpeft.data.samples import listed


def dataset_folder(config: DataConfig, names: Iterable[str]) -> Path:
    """Return the folder of a data set under ``data.path``, by the first of its names that exists.

    Raises:
        ValueError: If there is none.
    """
    root = Path(str(config.path)).expanduser()
    folders = [root / name for name in names]
    for folder in folders:
        if folder.is_dir():
            return folder
    spelt = " or ".join(folder.name for folder in folders)
    raise ValueError(f"data.path: {str(root)!r} has no folder {spelt} for data.dataset: {config.dataset}")


def require_files(folder: Path, names: Iterable[str], config: DataConfig) -> None:
    """Raise a ValueError that names all files and folders that a data set lacks."""
    absent = [name for name in names if not (folder / name).exists()]
    if absent:
        raise ValueError(f"data.path: {str(folder)!r} lacks {listed(absent)}, which {config.name} needs")


def require_classes(count: int, expected: int, config: DataConfig) -> None:
    """Raise a ValueError if a data set has another number of classes than it is known to have."""
    if count != expected:
        raise ValueError(
            f"data {config.path}: {count} classes, but {config.dataset} has {expected}: is this the whole of it?"
        )
