"""The command line: ``mmpeft COMMAND ...``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from mmpeft.cli.parser import parse

INTERRUPTED, REFUSED = 130, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C.

    A mistake is told in a message; a traceback comes with ``--debug``, or for a bug of ours.
    """
    options = parse(arguments)
    module, function = options.handler.split(":")
    try:
        code = getattr(import_module(module), function)(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ValueError, FileNotFoundError, FileExistsError, ImportError) as error:
        if options.debug or isinstance(error, ModuleNotFoundError):
            raise
        import_module("mmpeft.cli.console").refuse(str(error))
        return REFUSED
    return code if isinstance(code, int) else 0
