"""The command line: ``mmpeft COMMAND ...``."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from mmpeft.cli.parser import parse
from mmpeft.mistakes import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a mistake of the user, 130 after Ctrl-C.

    A mistake, a full disk or a missing right is told in a message; a traceback comes with ``--debug``, or for a bug.
    """
    options = parse(arguments)
    module, function = options.handler.split(":")
    return exit_code(lambda: getattr(import_module(module), function)(options), debug=options.debug)
