"""Atomic writes: a reader finds the old content or the new one, never half of it, even after a power cut."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex


def write_text(path: Path, text: str) -> None:
    """Replace a file's content."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file there takes the place of ``path`` at the end, unless the block raises.

    It is a path of this block's own: of several that write at once, the last one to end has written.
    """
    temporary = path.with_name(f".{path.name}.{token_hex(4)}.partial{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        synchronise(temporary)
        temporary.replace(path)
        synchronise(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yield a directory to fill; it gets the name ``path``, so far unused, at the end, unless the block raises."""
    if path.exists():
        raise FileExistsError(f"{path} is there already: choose another")
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        complete(temporary)
        temporary.rename(path)
        synchronise(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def complete(directory: Path) -> None:
    """Give the files of a new directory the rights that the umask gave it (safetensors' are its owner's) and force all
    to the disk."""
    mode = directory.stat().st_mode & 0o666
    for entry in directory.rglob("*"):
        if entry.is_file():
            entry.chmod(mode)
        synchronise(entry)
    synchronise(directory)


def synchronise(path: Path) -> None:
    """Force a file, or the entries of a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
