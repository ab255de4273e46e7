"""One writer at a time: lock files that name the process which holds them."""

from __future__ import annotations

import os
import random
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import quote, unquote

import psutil

BEAT = 20.0
"""Seconds between two signs of life of a holder."""
SILENCE = 180.0
"""Seconds without a sign of life after which a holder on another machine counts as gone."""
NAME = re.compile(r"(?P<host>.*)\.(?P<process>\d+)\.(?P<started>\d+)\.[0-9a-f]{8}")
_MINE: set[Path] = set()
"""Lock files of this process that are in use; one that only failed to be deleted is not."""


class InUseError(ValueError):
    """Another process, or another thread of this one, writes there."""

    def __init__(self, path: Path, holder: Holder) -> None:
        super().__init__(f"{str(path)!r} is being written by {holder}: if that is wrong, delete {holder.file}")


@dataclass(frozen=True)
class Holder:
    """The process that a lock file belongs to, as its name says."""

    file: Path
    host: str
    process: int
    started: int
    """Hundredths of a second from the start of the machine: a later process of the same number has another one."""

    @property
    def is_here(self) -> bool:
        """Whether the process runs on this machine."""
        return self.host == socket.gethostname()

    def is_gone(self, now: float) -> bool:
        """Tell whether the process has ended; if it is of another machine, whether it was silent for long.

        ``now`` is the time by the clock of the file system.
        """
        if not self.is_here:
            return now - self.file.stat().st_mtime > SILENCE
        if self.process == os.getpid():
            return self.file not in _MINE
        started = _started(self.process)
        return started is None or abs(started - self.started) > 100

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


@contextmanager
def locked(path: Path, patience: float) -> Iterator[None]:
    """Be the only one in such a block for ``path``; the lock is a hidden file beside it while the block runs.

    Its name holds the identity of the process: so it is made in one step, no two have the same file, and one that a
    killed process left is known by whoever comes next. Who finds another's file takes its own back and tries again.

    Raises:
        InUseError: If one that lives keeps the lock for ``patience`` seconds.
    """
    path = path.resolve()
    first_seen: dict[Holder, float] = {}
    while not isinstance(taken := _take(path), Path):
        first_seen = {holder: first_seen.get(holder, monotonic()) for holder in taken}
        holder, since = min(first_seen.items(), key=lambda item: item[1])
        if monotonic() - since > patience:
            raise InUseError(path, holder)
        sleep(random.uniform(0.01, 0.05))
    released = threading.Event()
    threading.Thread(target=_show_life, args=(taken, released), daemon=True).start()
    try:
        yield
    finally:
        released.set()
        _give_back(taken)


def refuse_if_locked(path: Path) -> None:
    """Raise an InUseError if another process of this machine is in a ``locked`` block for ``path``; change nothing."""
    for holder in _holders(path.resolve()) if path.parent.is_dir() else ():
        if holder.is_here and holder.process != os.getpid() and not holder.is_gone(now=0.0):
            raise InUseError(path, holder)


def _take(path: Path) -> Path | list[Holder]:
    """Make a lock file and return it; if there are others whose processes live, return them, and leave no file."""
    file = path.with_name(f"{_prefix(path)}{_identity()}.{secrets.token_hex(4)}")
    _MINE.add(file)
    alone = False
    try:
        file.touch()
        others = _living(path, file)
        alone = not others
    finally:
        if not alone:
            _give_back(file)
    return others or file


def _give_back(file: Path) -> None:
    _MINE.discard(file)
    file.unlink(missing_ok=True)


def _living(path: Path, mine: Path) -> list[Holder]:
    """Return the other holders of the lock, and delete the files of those that are gone."""
    now, living = mine.stat().st_mtime, []
    for holder in _holders(path):
        try:
            gone = holder.is_gone(now)
        except FileNotFoundError:
            continue
        if gone:
            holder.file.unlink(missing_ok=True)
        elif holder.file != mine:
            living.append(holder)
    return living


def _holders(path: Path) -> Iterator[Holder]:
    prefix = _prefix(path)
    for file in path.parent.iterdir():
        name = NAME.fullmatch(file.name.removeprefix(prefix))
        if name and file.name.startswith(prefix):
            yield Holder(file, unquote(name["host"]), int(name["process"]), int(name["started"]))


def _show_life(file: Path, released: threading.Event) -> None:
    while not released.wait(BEAT):
        if file.exists():
            os.utime(file)


def _prefix(path: Path) -> str:
    return f".{path.name}.lock."


def _identity() -> str:
    return f"{quote(socket.gethostname(), safe='')}.{os.getpid()}.{_started(os.getpid())}"


def _started(process: int) -> int | None:
    """Return when a process was started, or None if it has ended."""
    try:
        found = psutil.Process(process)
        ended = found.status() == psutil.STATUS_ZOMBIE
        return None if ended else round(100 * (found.create_time() - psutil.boot_time()))
    except psutil.NoSuchProcess:
        return None
