"""Names what is in a picture of one figure by comparing its outline with those of the drawn shapes: nothing is trained.

For pictures that a model drew: it says what a person would, and knows nothing of any model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mmpeft.data.drawing import FIGURES, FINE, PICTURE, TONES
from mmpeft.data.scenes import SHAPES

ANGLES = range(-16, 17, 8)
SCALES = (0.94, 1.0, 1.06)
FAINT = 60.0
"""A figure is at least so far from its ground, as a distance in RGB of 0 to 255."""
FEW, MANY = 12, 600
"""Pixels that a figure covers."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a picture shows."""

    shape: str
    colour: str
    ground: str
    overlap: float
    """Of the figure and the shape's outline, as intersection over union in [0, 1]."""
    size: float
    """Share of the picture that the figure covers."""
    place: tuple[float, float]
    """The figure's centre of mass, x and y in pixels."""


def recognise(picture: Image.Image) -> Recognised | None:
    """Name shape and colours in a picture of 32 x 32 pixels; None if no figure stands out from the ground.

    The ground is the median of the border, the figure what is far from it; each pixel then belongs to the figure by how
    far it is on the way from the ground's tone to the figure's. Its shape is that of the outlines, turned and scaled to
    the same area and put on the same centre, with the largest overlap (intersection over union).
    """
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    ground = np.median(_border(pixels), axis=0)
    distance = np.sqrt(((pixels - ground) ** 2).sum(-1))
    core = distance > 0.75 * np.quantile(distance, 0.98)
    if np.quantile(distance, 0.98) < FAINT or not FEW <= core.sum() <= MANY:
        return None
    ink = np.median(pixels[core], axis=0)
    cover = ((pixels - ground) @ (ink - ground) / ((ink - ground) ** 2).sum()).clip(0, 1)
    cover[cover < 0.25] = 0
    y, x = np.mgrid[:PICTURE, :PICTURE] + 0.5
    place = (float((x * cover).sum() / cover.sum()), float((y * cover).sum() / cover.sum()))
    overlap, shape = max((_overlap(cover, shape, place), shape) for shape in SHAPES)
    return Recognised(shape, _name(ink), _name(ground), overlap, float(cover.mean()), place)


def _border(pixels: Array) -> Array:
    return np.concatenate(
        [pixels[:2], pixels[-2:], pixels[:, :2].swapaxes(0, 1), pixels[:, -2:].swapaxes(0, 1)]
    ).reshape(-1, 3)


def _name(tone: Array) -> str:
    """The colour nearest in RGB."""
    return min(TONES, key=lambda name: float(np.square(tone - TONES[name]).sum()))


def _overlap(cover: Array, shape: str, place: tuple[float, float]) -> float:
    """The largest intersection over union with any pose of a shape."""
    area, centre = _measure(shape)
    size = math.sqrt(cover.sum() / area)
    return max(
        float(np.minimum(cover, other).sum() / np.maximum(cover, other).sum())
        for other in _poses(shape, size, centre, place)
    )


def _poses(shape: str, size: float, centre: Array, place: tuple[float, float]) -> Iterator[Array]:
    for degrees in ANGLES:
        angle = math.radians(degrees)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        for scale in SCALES:
            yield _fill([((outline - centre) @ turn * size * scale + place) * FINE for outline in FIGURES[shape]])


@cache
def _measure(shape: str) -> tuple[float, Array]:
    """Area and centre of mass of a shape of radius 1."""
    radius = PICTURE / 2
    cover = _fill([(outline * radius * 0.9 + radius) * FINE for outline in FIGURES[shape]])
    y, x = (np.mgrid[:PICTURE, :PICTURE] + 0.5 - radius) / (radius * 0.9)
    centre = np.array([(x * cover).sum(), (y * cover).sum()]) / cover.sum()
    return float(cover.sum() / (radius * 0.9) ** 2), centre


def _fill(outlines: list[Array]) -> Array:
    """How much of each pixel is inside the first outline and outside the others."""
    page = Image.new("L", (PICTURE * FINE, PICTURE * FINE))
    pen = ImageDraw.Draw(page)
    for number, outline in enumerate(outlines):
        pen.polygon([tuple(point) for point in outline.tolist()], fill=0 if number else 255)
    return np.asarray(page.reduce(FINE)) / 255
