"""``mmpeft show`` and ``mmpeft copy``: configurations to read and to change."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

from mmpeft.cli.run import load_run
from mmpeft.cli.shipped import UnknownNameError, configs, find_config, new_path, tasks
from mmpeft.configuration import resolved
from mmpeft.settings import nearest


def show(options: Namespace) -> None:
    """Print the resolved configuration with the origin of each value."""
    _, config, document = load_run(find_config(options.config), options.overrides)
    print(resolved(config, document), end="")


def copy(options: Namespace) -> None:
    """Copy a shipped file to a place where nothing is yet."""
    source = _find(options.source)
    inside = Path(options.dest).is_dir()
    dest = new_path(str(Path(options.dest, source.name)) if inside else options.dest)
    dest.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, dest)
    use = f"mmpeft train {dest}" if dest.suffix == ".yaml" else f"set task: {dest} in a configuration"
    print(f"copied {source} to {dest}; to use it: {use}")


def _find(name: str) -> Path:
    plain = name.removeprefix("configs/").removeprefix("tasks/").removesuffix(".yaml").removesuffix(".py")
    both = tasks() | configs()
    if plain not in both:
        raise UnknownNameError(f"{name!r}: no shipped configuration or task{nearest(plain, both)}")
    return both[plain]
