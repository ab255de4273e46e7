"""Concepts to learn: a folder of pictures that all mean one text, and perhaps one of other pictures of its class."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from PIL import Image

from mmpeft.data.diffusion_config import DiffusionData
from mmpeft.data.readers.folder import images_under
from mmpeft.data.samples import Sample


def read_concepts(config: DiffusionData) -> list[Sample]:
    """Return the pictures of all concepts, labelled by the concept's number.

    Raises:
        ValueError: If a folder is missing or has no image.
    """
    found = []
    for number, concept in enumerate(config.concepts):
        found += _pictures(concept.path, f"data.concepts.{number}.path", number, concept.prompt)
    return found


def read_classes(config: DiffusionData) -> dict[int, list[Sample]]:
    """Return the class pictures of each concept that has some, by its number.

    Raises:
        ValueError: If a folder is missing or has no image.
    """
    return {
        number: _pictures(concept.class_path, f"data.concepts.{number}.class_path", number, str(concept.class_prompt))
        for number, concept in enumerate(config.concepts)
        if concept.class_path is not None
    }


def _pictures(path: str, key: str, number: int, prompt: str | tuple[str, ...]) -> list[Sample]:
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"{key}: {path!r} is not a folder")
    files = images_under(root)
    if not files:
        raise ValueError(f"{key}: {path!r} has no image in it")
    names = [file.relative_to(root).as_posix() for file in files]
    return [
        Sample(f"{path}/{name}", number, partial(Image.open, file), caption=prompt)
        for name, file in zip(names, files, strict=True)
    ]
