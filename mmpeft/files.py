"""Atomic writes: a reader finds the old content or the new one, never half of it, even after a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from secrets import token_hex
from time import time

ABANDONED = 24 * 3600.0
"""Seconds after which a temporary file that nobody writes to is a killed process's."""


def write_text(path: Path, text: str) -> None:
    """Replace a file's content."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; the file there takes the place of ``path`` at the end, unless the block raises.

    It is a path of this block's own: of several that write at once, the last one to end has written. A process that is
    killed leaves it, hidden and never read; whoever writes ``path`` a day later or more removes it.
    """
    _remove_abandoned(path)
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


def _remove_abandoned(path: Path) -> None:
    for temporary in path.parent.glob(f".{escape(path.name)}.*.partial{escape(path.suffix)}"):
        with suppress(FileNotFoundError):
            if time() - temporary.stat().st_mtime > ABANDONED:
                temporary.unlink()


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
