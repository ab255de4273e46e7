"""Pickled lists of Dassl's ``Datum``, in which CoOp keeps drawn shots: read without running what a pickle can run."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Datum:
    """One image: its path on the machine that wrote the pickle, its label and the name of its class."""

    path: str
    label: int
    name: str


class _Record:
    """Takes the attributes of a pickled ``Datum``."""

    _impath: str
    _label: int
    _classname: str


class _Unpickler(pickle.Unpickler):
    """Knows one class and no function, so that a file can't call anything."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for ``Datum``, of whatever module; refuse everything else."""
        if name != "Datum":
            raise pickle.UnpicklingError(f"it wants {module}.{name}, and only Datum is read")
        return _Record


def read_datums(path: Path) -> dict[str, list[Datum]]:
    """Read ``{"train": [Datum, ...], "val": [Datum, ...]}``.

    Raises:
        ValueError: If the file holds anything else: what it wants is named, and nothing of it is run.
    """
    try:
        with path.open("rb") as file:
            parts: dict[str, list[_Record]] = _Unpickler(file).load()
        if "train" not in parts:
            raise ValueError("it has no 'train'")
        return {
            part: [Datum(str(item._impath), int(item._label), str(item._classname)) for item in items]
            for part, items in parts.items()
        }
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"data {path}: not a file of drawn shots: {error}") from None
