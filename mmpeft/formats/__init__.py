"""Adapters on disk: mmpeft's own directory, and the formats of other libraries, one file each.

Importing it needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from mmpeft.settings import nearest

_FORMATS = ("peft",)


def formats() -> tuple[str, ...]:
    """Return the names of the other libraries' formats."""
    return _FORMATS


def export(directory: Path, dest: Path, format: str) -> None:
    """Write an adapter that mmpeft saved in another library's format; one that it can't hold is a ValueError."""
    _module(format).export(directory, dest)


def convert(source: Path, dest: Path, format: str) -> None:
    """Write another library's adapter as one of mmpeft's."""
    _module(format).convert(source, dest)


def _module(format: str) -> ModuleType:
    if format not in _FORMATS:
        raise ValueError(f"format: unknown {format!r}{nearest(format, _FORMATS)}")
    return import_module(f"mmpeft.formats.{format}")
