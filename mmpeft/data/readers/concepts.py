"""Concepts to learn: a folder of a few pictures, and perhaps some of other pictures of its class."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.diffusion_config import DiffusionData
from mmpeft.data.readers.captions import FILES, caption_files, captioned
from mmpeft.data.readers.folder import images_under
from mmpeft.data.readers.scenes import read_scenes, scenes_of
from mmpeft.data.samples import Sample
from mmpeft.data.scenes import SHAPES, STYLES
from mmpeft.settings import nearest


def read_concepts(config: DiffusionData) -> list[Sample]:
    """Return the pictures of all concepts, labelled by the concept's number.

    Raises:
        ValueError: If a folder is missing or has no image, or an image no text.
    """
    found = []
    for number, concept in enumerate(config.concepts):
        pictures = _pictures(concept.path, concept.prompt, f"data.concepts.{number}.")[: concept.count]
        found += [replace(sample, label=number) for sample in pictures]
    return found


def read_classes(config: DiffusionData) -> dict[int, list[Sample]]:
    """Return the class pictures of each concept that has some, by its number.

    Raises:
        ValueError: If a folder is missing or has no image, or an image no text.
    """
    found: dict[int, list[Sample]] = {}
    for number, concept in enumerate(config.concepts):
        for path in concept.class_path:
            pictures = _pictures(path, concept.class_prompt, f"data.concepts.{number}.class_")
            found.setdefault(number, []).extend(replace(sample, label=number) for sample in pictures)
    return found


def _pictures(path: str, prompt: str | tuple[str, ...] | None, keys: str) -> list[Sample]:
    """Return the pictures of a path with the text of all, or each with its own; ``keys`` is where both are said."""
    if path.startswith("scenes/"):
        samples = _drawn(path, f"{keys}path")
    elif prompt is None:
        return _with_captions(path, keys)
    else:
        root, files = _folder(path, f"{keys}path")
        samples = [
            Sample(f"{path}/{file.relative_to(root).as_posix()}", None, partial(Image.open, file)) for file in files
        ]
    return samples if prompt is None else [replace(sample, caption=prompt) for sample in samples]


def _folder(path: str, key: str) -> tuple[Path, list[Path]]:
    """Return a folder and the images in it; there are some."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"{key}: {path!r} is not a folder")
    files = images_under(root)
    if not files:
        raise ValueError(f"{key}: {path!r} has no image in it")
    return root, files


def _with_captions(path: str, keys: str) -> list[Sample]:
    """Return the pictures in a folder, each with its own captions."""
    root, _ = _folder(path, f"{keys}path")
    found = caption_files(root)
    if len(found) != 1:
        raise ValueError(
            f"{keys}prompt: missing, and {path!r} has {len(found)} of the files {', '.join(FILES)}, "
            "and no text file beside each image (x.png, x.txt)"
        )
    return [replace(sample, id=f"{path}/{sample.id}") for sample in captioned(root, found[0])]


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
