"""Concepts to learn: a folder of a few pictures, and perhaps some of other pictures of its class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmpeft.data.config import DataConfig
from mmpeft.data.diffusion_config import DiffusionData
from mmpeft.data.pictures import PictureFile
from mmpeft.data.readers.captions import FILES, caption_files, captioned
from mmpeft.data.readers.folder import images_under
from mmpeft.data.readers.scenes import read_scenes, scenes_of
from mmpeft.data.samples import Sample
from mmpeft.data.scenes import NAMED, SHAPES, STYLES, Scene
from mmpeft.settings import nearest


def read_concepts(config: DiffusionData) -> list[Sample]:
    """Return the pictures of all concepts, labelled by the concept's number.

    Raises:
        ValueError: If a folder is missing or has no image, or an image no text.
    """
    samples = []
    for number, concept in enumerate(config.concepts):
        pictures = _pictures(concept.path, concept.prompt, f"data.concepts.{number}.")[: concept.count]
        samples += [replace(sample, label=number) for sample in pictures]
    return samples


def read_classes(config: DiffusionData) -> dict[int, list[Sample]]:
    """Return the class pictures of each concept that has some, by its number.

    Raises:
        ValueError: If a folder is missing or has no image, or an image no text.
    """
    by_class: dict[int, list[Sample]] = {}
    for number, concept in enumerate(config.concepts):
        for path in concept.class_path:
            pictures = _pictures(path, concept.class_prompt, f"data.concepts.{number}.class_")
            by_class.setdefault(number, []).extend(replace(sample, label=number) for sample in pictures)
    return by_class


def _pictures(path: str, prompt: str | tuple[str, ...] | None, keys: str) -> list[Sample]:
    """Return the pictures of a path with the text of all, or each with its own; ``keys`` is where both are said."""
    texts = (prompt,) if isinstance(prompt, str) else prompt
    if path.startswith("scenes/"):
        return _drawn(path, texts, keys)
    if texts is None:
        return _with_captions(path, keys)
    root, files = _folder(path, f"{keys}path")
    return [
        Sample(f"{path}/{file.relative_to(root).as_posix()}", None, PictureFile(str(file)), caption=texts)
        for file in files
    ]


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
    files = caption_files(root)
    if len(files) != 1:
        raise ValueError(
            f"{keys}prompt: missing, and {path!r} has {len(files)} of the files {', '.join(FILES)}, "
            "and no text file beside each image (x.png, x.txt)"
        )
    return [replace(sample, id=f"{path}/{sample.id}") for sample in captioned(root, files[0])]


def _drawn(path: str, texts: tuple[str, ...] | None, keys: str) -> list[Sample]:
    """Return the drawn pictures of ``scenes/STYLE/SHAPE`` that show it well: large, on a ground without texture."""
    known = {f"scenes/{style}/{shape}": (style, shape) for style in STYLES for shape in SHAPES}
    if path not in known:
        raise ValueError(f"{keys}path: {path!r} are no drawn scenes{nearest(path, known)}")
    style, shape = known[path]
    samples = read_scenes(DataConfig.model_validate({"name": "scenes", "style": style}))
    return [
        sample if texts is None else replace(sample, caption=tuple(_said(scene, text, keys) for text in texts))
        for sample, scene in zip(samples, scenes_of(style), strict=True)
        if (scene.shape, scene.size, scene.texture) == (shape, "large", "plain")
    ]


def _said(scene: Scene, text: str, keys: str) -> str:
    try:
        return scene.say(text)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"{keys}prompt: {text!r}: of a drawn scene it can name {', '.join(NAMED)} in braces"
        ) from error
