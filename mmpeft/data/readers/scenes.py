"""Drawn scenes: pictures of one figure with its caption and mask, painted when they are opened."""

from __future__ import annotations

from functools import lru_cache, partial

from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.drawing import draw, draw_mask
from mmpeft.data.samples import Sample
from mmpeft.data.scenes import SHAPES, STYLES, Scene, imagine

PER_SHAPE = 160
"""Pictures of each shape in each style."""


def read_scenes(config: DataConfig) -> list[Sample]:
    """Return the pictures of a style, 160 of each shape, always the same; no pretraining picture is among them."""
    assert config.style is not None
    return [_sample(scene, number) for number, scene in enumerate(scenes_of(config.style))]


def mask_classes_of_scenes(config: DataConfig) -> tuple[str, ...]:
    """Return the classes of the pixels: the ground, and each shape."""
    return ("ground", *SHAPES)


def scenes_of(style: str) -> list[Scene]:
    """Return the scenes behind the pictures of a style, shape by shape."""
    return [
        imagine((STYLES.index(style), number), shape=shape, style=style)
        for number, shape in enumerate(shape for shape in SHAPES for _ in range(PER_SHAPE))
    ]


@lru_cache(maxsize=len(STYLES) * len(SHAPES) * PER_SHAPE)
def painted(scene: Scene) -> Image.Image:
    """Paint a scene; once, for a picture takes longer to paint than to learn from."""
    return draw(scene)


def _sample(scene: Scene, number: int) -> Sample:
    return Sample(
        id=f"scenes/{scene.style}/{number:04d}",
        label=scene.shape,
        open=partial(painted, scene),
        caption=scene.caption,
        mask=partial(draw_mask, scene),
    )
