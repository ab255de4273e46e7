"""Paints scenes of 32 x 32 pixels with Pillow and numpy: the same scene always gives the same picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from mmpeft.data.scenes import PLACES, SHAPES, Scene

PICTURE = 32
FINE = 4
"""Figures are painted so many times larger and then reduced, for smooth edges."""
STRIDE = 5.5
"""Pixels between one place and the next."""
RADII = {"small": 5.0, "medium": 7.0, "large": 9.3}
TONES: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 40),
    "green": (45, 160, 60),
    "blue": (45, 80, 210),
    "yellow": (240, 215, 50),
    "orange": (240, 135, 30),
    "purple": (130, 50, 160),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
}
Array = NDArray[np.float64]


def _arc(start: float, end: float, radius: float = 1.0, x: float = 0.0, y: float = 0.0, points: int = 32) -> Array:
    """Points of a circle's arc, angles in degrees, clockwise on the page."""
    angles = np.radians(np.linspace(start, end, points))
    return np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)


def _polygon(*points: tuple[float, float]) -> Array:
    return np.array(points, dtype=np.float64)


def _star() -> Array:
    angles = np.radians(-90 + 36 * np.arange(10))
    return np.stack([np.cos(angles), np.sin(angles)], 1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]


def _heart() -> Array:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    drop = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -drop - 2.5], 1) / 16


FIGURES: dict[str, tuple[Array, ...]] = {
    "arrow": (_polygon((-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)),),
    "bolt": (_polygon((0.25, -1), (-0.65, 0.2), (-0.08, 0.2), (-0.3, 1), (0.65, -0.3), (0.05, -0.3)),),
    "circle": (_arc(0, 360),),
    "cross": (
        _polygon((-0.32, -1), (0.32, -1), (0.32, -0.32), (1, -0.32), (1, 0.32), (0.32, 0.32), (0.32, 1), (-0.32, 1),
                 (-0.32, 0.32), (-1, 0.32), (-1, -0.32), (-0.32, -0.32)),
    ),
    "diamond": (_polygon((0, -1), (0.68, 0), (0, 1), (-0.68, 0)),),
    "heart": (_heart(),),
    "hourglass": (_polygon((-0.75, -1), (0.75, -1), (0.12, 0), (0.75, 1), (-0.75, 1), (-0.12, 0)),),
    "moon": (np.concatenate([_arc(50, 310), _arc(283, 77, 0.79, 0.465)]),),
    "ring": (_arc(0, 360), _arc(0, 360, 0.55)),
    "square": (_polygon((-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)),),
    "star": (_star(),),
    "triangle": (_polygon((0, -0.9), (1, 0.8), (-1, 0.8)),),
}  # fmt: skip
"""Outlines within [-1, 1], y downwards; every outline after a figure's first is a hole."""


@dataclass(frozen=True)
class _Canvas:
    """What the styles paint with. Pictures are (32, 32, 3) and covers (32, 32, 1), in [0, 1]."""

    outlines: list[Array]
    ink: Array
    ground: Array
    random: np.random.Generator

    def cover(self) -> Array:
        """How much of each pixel the filled figure covers."""
        page, pen = _page()
        for number, outline in enumerate(self.outlines):
            pen.polygon([tuple(point) for point in outline.tolist()], fill=0 if number else 255)
        return _reduced(page)

    def strokes(self, width: float, shake: float, repeats: int = 1) -> Array:
        """How much of each pixel the outline's strokes cover; width and shake in pixels."""
        page, pen = _page()
        for outline in self.outlines * repeats:
            path = outline + self.random.normal(0, shake * FINE / len(outline) ** 0.25, outline.shape)
            closed = [tuple(point) for point in (*path.tolist(), path[0].tolist())]
            pen.line(closed, fill=255, width=round(width * FINE), joint="curve")
        return _reduced(page)

    def paint(self, cover: Array, ink: Array | None = None) -> Array:
        """Lay ink over the ground where there is cover."""
        return self.ground + ((self.ink if ink is None else ink) - self.ground) * cover


def draw(scene: Scene) -> Image.Image:
    """Paint a scene: an RGB picture of 32 x 32 pixels."""
    random = np.random.default_rng((*scene.seed, 2))
    outlines = _outlines(scene, random)
    ink, tone = _tone(scene.colour, random), _tone(scene.ground, random)
    picture = _STYLES[scene.style](_Canvas(outlines, ink, _ground(tone, scene.texture, random), random))
    picture = picture + random.normal(0, random.uniform(0, 0.04), picture.shape)
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


def draw_mask(scene: Scene) -> Image.Image:
    """Paint the class of each pixel of the same picture, mode ``L``: 0 on the ground, 1 + the shape's index inside.

    The inside is what the outline encloses, whatever the style fills it with.
    """
    outlines = _outlines(scene, np.random.default_rng((*scene.seed, 2)))
    empty = np.zeros((PICTURE, PICTURE, 3))
    cover = _Canvas(outlines, empty, empty, np.random.default_rng(0)).cover()[..., 0]
    return Image.fromarray(((cover > 0.5) * (1 + SHAPES.index(scene.shape))).astype(np.uint8))


def _outlines(scene: Scene, random: np.random.Generator) -> list[Array]:
    """The figure's outlines in fine pixels. It draws from `random` first, so that picture and mask agree."""
    radius = RADII[scene.size] * random.uniform(0.92, 1.06)
    cell = PLACES.index(scene.place)
    centre = 16 + STRIDE * np.array([cell % 3 - 1, cell // 3 - 1]) + random.uniform(-0.6, 0.6, 2)
    angle = math.radians(random.uniform(-15, 15))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return [(outline @ turn * radius + centre) * FINE for outline in FIGURES[scene.shape]]


def _tone(colour: str, random: np.random.Generator) -> Array:
    jitter = random.normal(0, 10, 3)
    return ((np.array(TONES[colour]) + jitter) / 255).clip(0, 1)


def _ground(tone: Array, texture: str, random: np.random.Generator) -> Array:
    """The ground (32, 32, 3): its tone, with stripes or dots that are lighter, or darker on a light ground."""
    along, across = _axes(random.uniform(0, math.pi))
    pace, phase = 2 * math.pi / random.uniform(4, 7), random.uniform(0, 2 * math.pi)
    waves = np.sin(along * pace + phase)
    patterns: dict[str, NDArray[np.bool_]] = {
        "plain": np.zeros(along.shape, dtype=np.bool_),
        "striped": waves > 0.2,
        "dotted": waves * np.sin(across * pace + phase) > 0.45,
    }
    change = random.uniform(0.12, 0.2) * (1 if tone.mean() < 0.5 else -1)
    return (tone + change * patterns[texture][..., None].astype(np.float64)).clip(0, 1)


def _axes(angle: float) -> tuple[Array, Array]:
    """Coordinates of the pixels along and across a direction, from the picture's middle."""
    y, x = np.mgrid[:PICTURE, :PICTURE] - (PICTURE - 1) / 2
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _page() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("L", (PICTURE * FINE, PICTURE * FINE))
    return page, ImageDraw.Draw(page)


def _reduced(page: Image.Image) -> Array:
    return np.asarray(page.reduce(FINE))[..., None] / 255


def _plain(canvas: _Canvas) -> Array:
    return canvas.paint(canvas.cover())


def _shaded(canvas: _Canvas) -> Array:
    along, _ = _axes(canvas.random.uniform(0, 2 * math.pi))
    light = (canvas.random.uniform(0.015, 0.03) * along)[..., None]
    return canvas.paint(canvas.cover(), canvas.ink + light)


def _sketch(canvas: _Canvas) -> Array:
    return canvas.paint(canvas.strokes(width=1.0, shake=0.7, repeats=2))


def _hatched(canvas: _Canvas) -> Array:
    along, _ = _axes(canvas.random.uniform(0, math.pi))
    lines = np.sin(along * (2 * math.pi / canvas.random.uniform(2.5, 3.5))) * 0.9 + 0.55
    return canvas.paint(canvas.cover() * lines.clip(0, 1)[..., None])


def _neon(canvas: _Canvas) -> Array:
    line = canvas.strokes(width=1.0, shake=0.0)
    blurred = Image.fromarray((line[..., 0] * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.6))
    glow = np.asarray(blurred)[..., None] / 255
    return canvas.ground * 0.3 + (canvas.ink * 0.8 + 0.2) * (glow * 1.6 + line * 0.5)


def _stippled(canvas: _Canvas) -> Array:
    dots = canvas.random.random((PICTURE, PICTURE, 1)) < 0.55
    return canvas.paint(canvas.cover() * dots)


_STYLES: dict[str, Callable[[_Canvas], Array]] = {
    "plain": _plain,
    "shaded": _shaded,
    "sketch": _sketch,
    "hatched": _hatched,
    "neon": _neon,
    "stippled": _stippled,
}
