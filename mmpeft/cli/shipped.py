"""The shipped configurations and task scripts, in a checkout or inside the installed package."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from mmpeft.settings import nearest


class UnknownNameError(ValueError):
    """A name that no shipped file has."""


PACKAGE = Path(__file__).parents[1]


def configs() -> dict[str, Path]:
    """Return the shipped configurations by name, such as ``vision/adaptformer_digits``."""
    return _files("configs", ".yaml")


def tasks() -> dict[str, Path]:
    """Return the shipped task scripts by name, such as ``vision/classify``."""
    return _files("tasks", ".py")


def find_config(name: str) -> Path:
    """Return the file of a configuration: a path, or the name of a shipped one."""
    if Path(name).is_file():
        return Path(name)
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    if plain not in configs():
        raise UnknownNameError(
            f"CONFIG {name!r}: neither a file nor a shipped configuration{nearest(plain, configs())}"
        )
    path = configs()[plain]
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def find_task(name: str) -> Path:
    """Return the file of a task: the name of a shipped one, or the path of a script of the user's own."""
    if name.endswith(".py") and Path(name).is_file():
        return Path(name)
    if name not in tasks():
        raise UnknownNameError(f"no task {name!r}, neither shipped nor a .py file{nearest(name, tasks())}")
    return tasks()[name]


def load_task(path: Path) -> Any:
    """Import a task script, known to worker processes under the name ``mmpeft_task``, and return its ``TASK``.

    A script without one is a task itself: a module with ``Config`` and functions that are named as the verbs are.
    """
    spec = spec_from_file_location("mmpeft_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, "TASK", module)


def new_path(dest: str) -> Path:
    """Return a path where nothing is yet."""
    if Path(dest).exists():
        raise FileExistsError(f"DEST {dest!r} exists and is not overwritten: choose another name")
    return Path(dest)


def first_comment(path: Path) -> str:
    """Return the first line of a file without its comment sign or quotes: what the file says it is."""
    with path.open(encoding="utf-8") as lines:
        return next(lines, "").strip().strip('#"').strip()


def _files(kind: str, suffix: str) -> dict[str, Path]:
    inside = PACKAGE / kind
    root = inside if inside.is_dir() else PACKAGE.parent / kind
    paths = sorted(root.rglob(f"*{suffix}"))
    return {str(path.relative_to(root).with_suffix("")): path for path in paths if not path.name.startswith("_")}
