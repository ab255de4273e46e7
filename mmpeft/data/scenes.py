"""What is in a drawn scene - one figure on a ground - and how it is said. `mmpeft.data.drawing` paints it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

SHAPES = (
    "arrow", "bolt", "circle", "cross", "diamond", "heart", "hourglass", "moon", "ring", "square", "star", "triangle",
)  # fmt: skip
"""The classes, sorted; in a mask a figure has its index here plus one, the ground has 0."""
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
"""Of figures and of grounds; the two always differ."""
SIZES = ("small", "medium", "large")
PLACES = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the middle", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
TEXTURES = ("plain", "striped", "dotted")
SEEN_STYLES = ("plain", "shaded")
"""Filled figures, in one tone or from dark to light: what `tiny/clip` was pretrained on."""
UNSEEN_STYLES = ("sketch", "hatched", "neon", "stippled")
"""What it never saw: unsteady outlines, hatching, glowing outlines on a dark ground, dots of ink."""
STYLES = SEEN_STYLES + UNSEEN_STYLES
NAMED = ("shape", "colour", "size", "place", "ground", "texture")
"""What a phrasing can name of a scene, in braces."""

CAPTIONS = (
    "a {size} {colour} {shape} on a {ground} ground",
    "a {size} {colour} {shape} {place}",
    "a {size} {colour} {shape} {place} on a {texture} {ground} ground",
    "on a {texture} {ground} ground, a {size} {colour} {shape}",
    "a {colour} {shape} of {size} size {place}, the ground is {ground}",
    "the {shape} {place} is {size} and {colour}",
)
"""Phrasings of everything worth telling apart; for pretraining, tools/pretrain_clip.py has shorter ones besides."""


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture before it is painted."""

    shape: str
    colour: str
    size: str
    place: str
    ground: str
    texture: str
    style: str
    seed: tuple[int, ...]
    """Of everything that has no name: exact tones, place, size and turn, the unsteadiness of the hand."""

    def say(self, phrasing: str) -> str:
        """Fill in a phrasing such as one of `CAPTIONS`."""
        words = {name: getattr(self, name) for name in NAMED}
        return with_articles(phrasing.format(**words))

    @property
    def caption(self) -> str:
        """A full description, in the phrasing that the seed chooses."""
        return self.say(CAPTIONS[int(np.random.default_rng((*self.seed, 1)).integers(len(CAPTIONS)))])


def with_articles(text: str) -> str:
    """Write ``an`` for ``a`` before a vowel or a silent h."""
    return re.sub(r"\b([Aa]) (?=[aeiou]|hour)", r"\1n ", text)


def is_held_out(shape: str, colour: str) -> bool:
    """Whether pretraining never shows this shape in this colour: 12 of the 96 combinations, one of every shape.

    Each of their shapes and colours is seen, with others: what is measured on them is put together, not remembered.
    """
    return (SHAPES.index(shape) + COLOURS.index(colour)) % 8 == 0


def imagine(seed: tuple[int, ...], *, shape: str | None = None, style: str) -> Scene:
    """Choose a scene by its seed, evenly over everything that is not given."""
    random = np.random.default_rng(seed)
    kind, colour, other, size, position, texture = random.random(6)
    ground = (_index(COLOURS, colour) + 1 + int(other * (len(COLOURS) - 1))) % len(COLOURS)
    return Scene(
        shape=shape or SHAPES[_index(SHAPES, kind)],
        colour=COLOURS[_index(COLOURS, colour)],
        size=SIZES[_index(SIZES, size)],
        place=PLACES[_index(PLACES, position)],
        ground=COLOURS[ground],
        texture=TEXTURES[_index(TEXTURES, texture)],
        style=style,
        seed=seed,
    )


def _index(names: tuple[str, ...], share: float) -> int:
    return int(share * len(names))
