"""Have what an action does to files end at each single operation: as by a SIGKILL, or by an error of the system."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import safetensors.torch

OPERATIONS = (
    *((os, name) for name in ("open", "fsync", "mkdir", "rename", "replace", "unlink", "remove", "rmdir", "utime")),
    (builtins, "open"),
    (io, "open"),
)
"""What libraries of Python do to files by; safetensors writes by functions of its own."""
Ending = Literal["kill", "error"]


class KilledError(BaseException):
    """Stands for a kill: no operation works from here on, so that what would clean up can't."""


class Operations:
    """Counts operations; the one of the given number, and after a kill all later ones, raise."""

    def __init__(self, number: int, ending: Ending | Literal["sigkill"]) -> None:
        self.number, self.ending, self.done = number, ending, 0

    def count(self) -> None:
        """Take note of an operation that is about to be done."""
        self.done += 1
        if self.done >= self.number and self.ending == "kill":
            raise KilledError
        if self.done == self.number and self.ending == "sigkill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.done == self.number:
            raise OSError(errno.ENOSPC, "disk full")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Count the operations of a block; nothing is really forced to the disk."""
        with ExitStack() as stack:
            for module, name in OPERATIONS:
                original = getattr(module, name) if name != "fsync" else lambda descriptor: None
                stack.enter_context(patch.object(module, name, self._counted(original)))
            write = safetensors.torch.serialize_file
            stack.enter_context(patch.object(safetensors.torch, "serialize_file", self._halved(write)))
            yield

    def _counted(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*arguments: Any, **named: Any) -> Any:
            self.count()
            return original(*arguments, **named)

        return operation

    def _halved(self, write: Callable[..., None]) -> Callable[..., None]:
        """Return a function that writes half of a file before it counts as an operation."""

        def operation(tensors: Any, path: Any, *arguments: Any, **named: Any) -> None:
            write(tensors, path, *arguments, **named)
            os.truncate(path, Path(path).stat().st_size // 2)
            self.count()
            write(tensors, path, *arguments, **named)

        return operation


def ended_at_each_operation(act: Callable[[], object], ending: Ending) -> Iterator[int]:
    """Run an action again and again, each time to its next operation on files; yield the operation's number.

    The iteration ends with the run that needs no more operations; an action may get over an error.
    """
    for number in count(1):
        operations = Operations(number, ending)
        with operations.watched(), suppress(KilledError, OSError):
            act()
        if operations.done < number:
            return
        yield number


def killed(act: Callable[[], object], number: int) -> None:
    """Run an action in a forked process, which gets a real SIGKILL at an operation."""
    child = os.fork()
    if child == 0:
        with Operations(number, "sigkill").watched():
            act()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
