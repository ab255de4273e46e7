"""Libraries that only some sources need: one clear message when they are missing."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def require(module: str, package: str) -> Any:
    """Import an optional library.

    Raises:
        ImportError: If it isn't installed, with the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(f"{module} is not installed: pip install '{package}'", name=module) from error
