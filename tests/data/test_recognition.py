from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmpeft.data.drawing import PICTURE, RADII, draw
from mmpeft.data.recognition import recognise
from mmpeft.data.scenes import COLOURS, PLACES, SEEN_STYLES, SHAPES, imagine


def scene(number, shape):
    return replace(imagine((9, number), shape=shape, style=SEEN_STYLES[number % 2]), texture="plain")


@pytest.mark.parametrize("shape", SHAPES)
def test_drawn_shapes_are_named(shape):
    scenes = [scene(number, shape) for number in range(8)]
    seen = [recognise(draw(one)) for one in scenes]
    assert sum(one is not None and one.shape == shape for one in seen) >= 7
    assert np.mean([0 if one is None else one.overlap for one in seen]) > 0.78


def test_figure_and_ground_have_the_colours_that_were_chosen():
    scenes = [scene(number, SHAPES[number % len(SHAPES)]) for number in range(48)]
    seen = [recognise(draw(one)) for one in scenes]
    assert {one.colour for one in scenes} == set(COLOURS)
    assert (
        np.mean([one is not None and one.colour == said.colour for one, said in zip(seen, scenes, strict=True)]) > 0.9
    )
    assert (
        np.mean([one is not None and one.ground == said.ground for one, said in zip(seen, scenes, strict=True)]) > 0.9
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", RADII)
def test_place_and_size_are_measured(place, size):
    one = replace(scene(1, "square"), place=place, size=size)
    seen, number = recognise(draw(one)), PLACES.index(place)
    expected = 16 + 5.5 * np.array([number % 3 - 1, number // 3 - 1])
    assert seen is not None
    assert np.abs(np.array(seen.place) - expected).max() < 2
    assert seen.size * PICTURE**2 == pytest.approx((2 * 0.82 * RADII[size]) ** 2, rel=0.3)


def test_nothing_is_seen_where_there_is_no_figure():
    empty = np.full((PICTURE, PICTURE, 3), 120, dtype=np.uint8)
    halves = empty.copy()
    halves[:, 16:] = 240
    faint = empty.copy()
    faint[10:20, 10:20] += 20
    for pixels in (empty, faint, halves):
        assert recognise(Image.fromarray(pixels)) is None


def test_what_resembles_no_shape_overlaps_little():
    pixels = np.full((PICTURE, PICTURE, 3), 240, dtype=np.uint8)
    pixels[15:17, 4:28] = 20
    seen = recognise(Image.fromarray(pixels))
    assert seen is None or seen.overlap < 0.5
