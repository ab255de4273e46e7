"""The command line: ``mmpeft COMMAND ...``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from mmpeft.cli.parser import parse
from mmpeft.settings import shortened

INTERRUPTED, REFUSED = 130, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C.

    A mistake, a full disk or a missing right is told in a message; a traceback comes with ``--debug``, or for a bug.
    """
    options = parse(arguments)
    module, function = options.handler.split(":")
    try:
        code = getattr(import_module(module), function)(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = _told(error)
        if options.debug or message is None:
            raise
        import_module("mmpeft.cli.console").refuse(message)
        return REFUSED
    return code if isinstance(code, int) else 0


def _told(error: Exception) -> str | None:
    """Return what to tell of a mistake, or of a file system that refuses; None for a bug of ours."""
    if isinstance(error, OSError) and error.strerror is not None:
        names = [shortened(str(name)) for name in (error.filename, error.filename2) if name is not None]
        return f"{error.strerror}{': ' if names else ''}{' -> '.join(names)}"
    if type(error).__name__ == "SafetensorError" and "code: " in str(error):  # what the system said, in Rust's words
        return f"safetensors: {error}"
    mistake = isinstance(error, ValueError | OSError | ImportError) and not isinstance(error, ModuleNotFoundError)
    return str(error) if mistake else None
