"""Pickled lists of Dassl's ``Datum``, in which CoOp keeps drawn shots: read without running what a pickle can run."""

from __future__ import annotations

import pickle
import pickletools
from dataclasses import dataclass
from io import BytesIO
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
        content = path.read_bytes()
        _check_operations(content)
        parts = _Unpickler(BytesIO(content)).load()
        if not isinstance(parts, dict) or "train" not in parts:
            raise ValueError("it has no 'train'")
        return {str(part): [_datum(item) for item in items] for part, items in parts.items()}
    except Exception as error:  # a broken pickle raises anything
        raise ValueError(f"data {path}: not a file of drawn shots: {error or type(error).__name__}") from None


def _check_operations(content: bytes) -> None:
    """Raise a ValueError if unpickling would take more memory than a few times the file's bytes.

    Unpickling believes the lengths that a file gives, which ``genops`` compares with its bytes, and makes room for all
    numbers below that under which something is kept.
    """
    for count, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if "PUT" in operation.name and int(argument or 0) > count:
            raise ValueError(f"it keeps something as number {argument} after {count} operations")


def _datum(item: Any) -> Datum:
    match item:
        case _Record(_impath=str(image), _label=int(label), _classname=str(name)):
            return Datum(image, label, name)
    raise ValueError("an item has no path, label or class name")
