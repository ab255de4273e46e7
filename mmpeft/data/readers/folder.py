"""Image folders as torchvision reads them: ROOT/class/x.png, or ROOT/{train,val,test}/class/x.png."""

from __future__ import annotations

from pathlib import Path

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureFile
from mmpeft.data.readers.paths import image_names
from mmpeft.data.samples import Sample, listed
from mmpeft.data.splits import ALIASES


def read_folder(config: DataConfig) -> list[Sample]:
    """Return every image under the class folders; if all top folders are named like splits, they are the splits.

    Raises:
        ValueError: If the folder is missing or has no class folders, or class folders have no image in them.
    """
    root = Path(str(config.path)).expanduser()
    if not root.is_dir():
        raise ValueError(f"data.path: {str(root)!r} is not a folder")
    tops = _folders(root)
    if not tops:
        raise ValueError(f"data.path: {str(root)!r} has no class folders: images belong in {root}/CLASS/")
    are_splits = all(top.name.lower() in ALIASES for top in tops)
    pairs = (
        [(ALIASES[top.name.lower()], folder) for top in tops for folder in _folders(top)]
        if are_splits
        else [(None, top) for top in tops]
    )
    samples, empty = [], []
    for split, folder in pairs:
        names, before = image_names(folder), folder.relative_to(root).as_posix()
        if not names:
            empty.append(before)
        samples += [Sample(f"{before}/{name}", folder.name, PictureFile(f"{folder}/{name}"), split) for name in names]
    if empty:
        raise ValueError(f"data {root}: {len(empty)} of {len(pairs)} class folders have no image: {listed(empty)}")
    return samples


def images_under(folder: Path) -> list[Path]:
    """Return every image in a folder and the folders in it, sorted."""
    return [folder / name for name in image_names(folder)]


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"data.path: {str(root)!r} can't be read: {error.strerror}") from None
