"""Packages of strangers, installed into a folder as pip does: modules, and metadata that names entry points."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path


def install(source: Path, site: Path) -> Path:
    """Install the project of one module beside ``pyproject.toml`` into a folder of packages; pip may need a network."""
    project = tomllib.loads((source / "pyproject.toml").read_text())["project"]
    for module in source.glob("*.py"):
        shutil.copy(module, site)
    return write_metadata(site, project["name"], project["version"], project["entry-points"])


def write_metadata(site: Path, name: str, version: str, groups: Mapping[str, Mapping[str, str]]) -> Path:
    """Write what says that a package is installed, and what it offers."""
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in own.items()) for group, own in groups.items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return site
