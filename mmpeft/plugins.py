"""What other installed packages bring in by entry points: methods, the maps of model libraries, and file formats."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

METHODS = "mmpeft.methods"
ANATOMIES = "mmpeft.anatomies"
FORMATS = "mmpeft.formats"


def load_plugins(group: str, take: Callable[[str, Any], None]) -> None:
    """Give ``take`` the name of each entry point of a group, and the object that it names.

    One that can't be imported or taken is left out with a warning that names its package and the error: whatever is
    wrong with a package, models and methods that don't need it work on.
    """
    for point in entry_points(group=group):
        try:
            take(point.name, point.load())
        except (Exception, SystemExit) as error:  # the package is a stranger's: whatever is wrong with it is its own
            problem = f"{type(error).__name__}: {error}"
            message = f"{group}: {point.name!r} of the installed package {package_of(point)} is left out: {problem}"
            warnings.warn(message, stacklevel=3)


def package_of(point: EntryPoint) -> str:
    """Return name and version of the installed package that an entry point belongs to, such as ``mmpeft-vera 0.1``."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.module


def unavailable(group: str, name: str) -> str:
    """Say why what a package offers under a name can't be used here, ready to end a sentence about the package."""
    return "can't be imported here" if name in offers(group) else "is not installed here"


def offers(group: str) -> dict[str, str]:
    """Return the package that offers each name of a group, without importing it."""
    return {point.name: package_of(point) for point in entry_points(group=group)}


def package_offering(group: str, module: str) -> str | None:
    """Return the package that offers something of a group from a module's package, without importing it."""
    root = module.partition(".")[0]
    points = (point for point in entry_points(group=group) if point.module.partition(".")[0] == root)
    return next(map(package_of, points), None)
