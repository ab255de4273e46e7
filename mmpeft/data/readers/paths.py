"""Where images lie: those in a folder, and those that a list names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from mmpeft.data.config import DataConfig
from mmpeft.data.samples import listed

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def image_names(root: str | Path) -> list[str]:
    """Return the names of all images in a folder and the folders in it, ``a/b.png``, sorted folder by folder.

    Links to folders are not followed: they could lead in a circle.

    Raises:
        ValueError: If a folder can't be read, or a name is no UTF-8.
    """
    names: list[str] = []
    waiting = [("", True)]
    while waiting:
        name, is_folder = waiting.pop()
        if is_folder:
            waiting += _entries(str(root), name)
        else:
            names.append(name)
    wrong = [ascii(name) for name in names if not _is_text(name)]
    if wrong:
        raise ValueError(f"data {root}: {len(wrong)} of {len(names)} file names are no UTF-8: {listed(wrong)}")
    return names


def _entries(root: str, folder: str) -> list[tuple[str, bool]]:
    """Return folders and images in a folder, the last first, each with whether it is a folder."""
    members, before = [], folder and f"{folder}/"
    try:
        with os.scandir(f"{root}/{folder}") as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    members.append((before + entry.name, True))
                elif entry.name.lower().endswith(ENDINGS):
                    members.append((before + entry.name, False))
    except OSError as error:
        raise ValueError(f"data {root}: {folder!r} can't be read: {error.strerror}") from None
    return sorted(members, reverse=True)


def _is_text(name: str) -> bool:
    return name.isascii() or name == name.encode(errors="replace").decode()


def listed_paths(root: Path, names: Sequence[str], config: DataConfig, where: str) -> list[str]:
    """Return the paths of files that a list names, relative to a folder; ``where`` is the list's name.

    Raises:
        ValueError: If a name is no path, or leads out of the folder - from the root, by ``..`` or through a link - and
            ``allow_outside`` does not allow it.
    """
    wrong = [ascii(name) for name in names if "\0" in name or not _is_text(name)]
    if wrong:
        raise ValueError(f"data {where}: {len(wrong)} of {len(names)} are no paths: {listed(wrong)}")
    paths = [os.path.join(root, name) for name in names]  # noqa: PTH118 (no Path for each of a million)
    if config.allow_outside:
        return paths
    is_inside = _inside(root)
    leaving = [name for name, path in zip(names, paths, strict=True) if not is_inside(path)]
    if leaving:
        raise ValueError(
            f"data {where}: {len(leaving)} of {len(names)} files lie outside {root}: {listed(leaving)}; if this is "
            "meant: data.allow_outside=true"
        )
    return paths


def _inside(root: Path) -> Callable[[str], bool]:
    """Return what tells whether a path stays in a folder, links followed; each folder in it is looked at once."""
    base = os.path.realpath(root)
    known: dict[str, bool] = {}

    def is_under(path: str) -> bool:
        return f"{os.path.realpath(path)}/".startswith(f"{base.rstrip('/')}/")

    def is_inside(path: str) -> bool:
        folder = path.rpartition("/")[0]
        if folder not in known:
            known[folder] = is_under(folder or "/")
        return known[folder] and (not os.path.islink(path) or is_under(path))  # noqa: PTH114

    return is_inside
