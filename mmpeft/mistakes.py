"""What a program tells of an error: a user's mistake is one message, a bug of ours keeps its traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from mmpeft.settings import shortened

INTERRUPTED, REFUSED = 130, 2


def exit_code(work: Callable[[], Any], *, debug: bool = False) -> int:
    """Do some work and return the program's exit code: 0 or what the work returns, 2 for a mistake, 130 after Ctrl-C.

    Args:
        work: What is done; an integer that it returns is the exit code.
        debug: Whether mistakes keep their tracebacks too.
    """
    try:
        code = work()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        message = told(error)
        if debug or message is None:
            raise
        refuse(message)
        return REFUSED
    return code if isinstance(code, int) else 0


def told(error: Exception) -> str | None:
    """Return what to tell of a mistake, or of a file system that refuses; None for a bug of ours."""
    if isinstance(error, OSError) and error.strerror is not None:
        names = [shortened(str(name)) for name in (error.filename, error.filename2) if name is not None]
        return f"{error.strerror}{': ' if names else ''}{' -> '.join(names)}"
    if type(error).__name__ == "SafetensorError" and "code: " in str(error):  # what the system said, in Rust's words
        return f"safetensors: {error}"
    mistake = isinstance(error, ValueError | OSError | ImportError) and not isinstance(error, ModuleNotFoundError)
    return str(error) if mistake else None


def refuse(message: str) -> None:
    """Print a mistake of the user's to stderr, as it is."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text("error: ", style="bold red") + Text(message, style="not bold"), soft_wrap=True)
