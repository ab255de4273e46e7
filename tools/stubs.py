"""Write the ``__init__.pyi`` of packages whose names are found when they are asked for, for type checkers and editors.

python tools/stubs.py           # write them; needed after a public name or a method comes or goes
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HEADER = "# Made by tools/stubs.py: the public names, which __init__.py finds when they are asked for.\n"
MORE = {
    "mmpeft": "\n__version__: str\n\ndef methods() -> dict[str, type[Method]]: ...\n",
    "mmpeft.methods": "",
    "mmpeft.anatomies": "",
}
"""The packages, with what their stub says beside the homes of classes and functions."""


def stub(package: str) -> str:
    """Return the text of a package's stub."""
    module = import_module(package)
    names = [name for name in module.__all__ if (package, name) != ("mmpeft", "methods")]
    lines = sorted(f"from {home(getattr(module, name))} import {name} as {name}\n" for name in names)
    return HEADER + "".join(lines) + MORE[package]


def home(thing: Any) -> str:
    """Return the module that a class or function is made in."""
    return str(thing.__module__)


def path(package: str) -> Path:
    """Return where a package's stub stands."""
    return ROOT.joinpath(*package.split("."), "__init__.pyi")


def main() -> None:
    """Write all stubs."""
    for package in MORE:
        path(package).write_text(stub(package), encoding="utf-8")


if __name__ == "__main__":
    main()
