"""Concepts to learn: a folder of pictures that all mean one text, and perhaps one of other pictures of its class."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.diffusion_config import DiffusionData
from mmpeft.data.readers.folder import images_under
from mmpeft.data.readers.scenes import read_scenes, scenes_of
from mmpeft.data.samples import Sample
from mmpeft.data.scenes import SHAPES, STYLES
from mmpeft.settings import nearest


def read_concepts(config: DiffusionData) -> list[Sample]:
    """Return the pictures of all concepts, labelled by the concept's number.

    Raises:
        ValueError: If a folder is missing or has no image.
    """
    found = []
    for number, concept in enumerate(config.concepts):
        pictures = _pictures(concept.path, f"data.concepts.{number}.path")[: concept.count]
        found += [replace(sample, label=number, caption=concept.prompt) for sample in pictures]
    return found


def read_classes(config: DiffusionData) -> dict[int, list[Sample]]:
    """Return the class pictures of each concept that has some, by its number.

    Raises:
        ValueError: If a folder is missing or has no image.
    """
    found = {}
    for number, concept in enumerate(config.concepts):
        if concept.class_path is not None:
            pictures = _pictures(concept.class_path, f"data.concepts.{number}.class_path")
            found[number] = [replace(sample, label=number, caption=concept.class_prompt) for sample in pictures]
    return found


def _pictures(path: str, key: str) -> list[Sample]:
    if path.startswith("scenes/"):
        return _drawn(path, key)
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"{key}: {path!r} is not a folder")
    files = images_under(root)
    if not files:
        raise ValueError(f"{key}: {path!r} has no image in it")
    return [Sample(f"{path}/{file.relative_to(root).as_posix()}", None, partial(Image.open, file)) for file in files]


def _drawn(path: str, key: str) -> list[Sample]:
    """Return the drawn pictures of ``scenes/STYLE/SHAPE`` that show it well: large, on a ground without texture."""
    known = {f"scenes/{style}/{shape}": (style, shape) for style in STYLES for shape in SHAPES}
    if path not in known:
        raise ValueError(f"{key}: {path!r} are no drawn scenes{nearest(path, known)}")
    style, shape = known[path]
    samples = read_scenes(DataConfig.model_validate({"name": "scenes", "style": style}))
    scenes = scenes_of(style)
    return [
        sample
        for sample, scene in zip(samples, scenes, strict=True)
        if (scene.shape, scene.size, scene.texture) == (shape, "large", "plain")
    ]
