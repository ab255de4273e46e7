"""Images and their masks in two folders: IMAGES/x.jpg and MASKS/x.png, or IMAGES/train/x.jpg and MASKS/train/x.png."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import PictureFile, upright
from mmpeft.data.readers.folder import images_under
from mmpeft.data.samples import Sample, listed
from mmpeft.data.splits import ALIASES
from mmpeft.data.text_files import read_text

NAMES = "classes.txt"


def read_masks(config: DataConfig) -> list[Sample]:
    """Return every image with its mask; if all top folders are named like splits, they are the splits.

    Raises:
        ValueError: If a folder is missing or has no image, or images and masks are not one to one.
    """
    roots = {}
    for key in ("path", "mask_path"):
        roots[key] = Path(str(getattr(config, key))).expanduser()
        if not roots[key].is_dir():
            raise ValueError(f"data.{key}: {str(roots[key])!r} is not a folder")
    images = {path.relative_to(roots["path"]): path for path in images_under(roots["path"])}
    masks = {path.relative_to(roots["mask_path"]): path for path in images_under(roots["mask_path"])}
    if not images:
        raise ValueError(f"data.path: {str(roots['path'])!r} has no image in it")
    _refuse_single(images, masks, roots)
    splits = [ALIASES.get(name.parts[0].lower()) if len(name.parts) > 1 else None for name in images]
    kept = splits if None not in splits else [None] * len(splits)
    return [
        Sample(name.as_posix(), None, PictureFile(str(path)), split, mask=MaskFile(str(masks[_mask(name)])))
        for (name, path), split in zip(images.items(), kept, strict=True)
    ]


def _mask(name: Path) -> Path:
    return name.with_suffix(".png")


def _refuse_single(images: dict[Path, Path], masks: dict[Path, Path], roots: dict[str, Path]) -> None:
    problems = []
    bare = [name.as_posix() for name in images if _mask(name) not in masks]
    if bare:
        problems.append(f"{len(bare)} of {len(images)} images have no mask in {roots['mask_path']}: {listed(bare)}")
    wanted = {_mask(name) for name in images}
    lost = [name.as_posix() for name in masks if name not in wanted]
    if lost:
        problems.append(f"{len(lost)} of {len(masks)} masks have no image in {roots['path']}: {listed(lost)}")
    if problems:
        raise ValueError(f"data {roots['path']}: {'; '.join(problems)}")


@dataclass(frozen=True, slots=True)
class MaskFile(PictureFile):
    """A mask in a file, read whenever it is called; what it raises is a `PictureError`."""

    def __call__(self) -> Image.Image:
        """Return indices, mode ``L``; the colours of a palette are left out. It is turned as its own EXIF data say."""
        with self.opened() as image:
            if image.mode not in ("L", "P", "1"):
                raise ValueError(f"mode {image.mode!r} where one index per pixel (mode 'L' or 'P') is wanted")
            return Image.fromarray(np.asarray(upright(image)).astype(np.uint8))


def read_mask_classes(config: DataConfig) -> tuple[str, ...]:
    """Return the names of the classes: the configuration's, or those of the file beside the masks.

    Raises:
        ValueError: If there are neither.
    """
    if config.classes is not None:
        return config.classes
    path = Path(str(config.mask_path)).expanduser() / NAMES
    if not path.is_file():
        raise ValueError(f"data.classes: missing, and there is no {path} with one name per line")
    return tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
