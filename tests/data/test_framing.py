"""Shapes for pictures of all shapes."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmpeft.data.framing import Framing


def test_buckets_have_the_area_and_hold_to_the_step() -> None:
    framing = Framing(512, 64)
    sizes = framing.buckets
    assert (512, 512) in sizes
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert 0.7 * 512**2 < height * width <= 512**2
        assert 0.5 <= height / width <= 2
    assert sizes[framing.bucket((600, 1200))] == (384, 640)
    assert sizes[framing.bucket((900, 900))] == (512, 512)


@pytest.mark.parametrize("original", [(100, 37), (37, 100), (20, 20), (640, 480)])
def test_a_frame_is_full_and_keeps_the_ratio(original: tuple[int, int]) -> None:
    for framing in (Framing(64), Framing(64, 16)):
        frame = framing.plain(original)
        picture = frame.placed(frame.cut(Image.new("RGB", original[::-1], (255, 255, 255))))
        assert picture.shape[1:] == frame.size
        assert (picture == 1).all()
        ratio = (frame.resized[0] / original[0]) / (frame.resized[1] / original[1])
        assert ratio == pytest.approx(1, abs=0.05)


def test_a_cut_is_where_its_numbers_say() -> None:
    image = Image.new("RGB", (60, 20))
    image.paste((255, 255, 255), (0, 0, 30, 20))
    generator = torch.Generator().manual_seed(1)
    frame = Framing(20).drawn((20, 60), ("crop", "flip"), False, generator)
    picture = frame.placed(frame.cut(image), (0, 1))[0]
    left, white = frame.corner[1], picture.mean(0) > 0.5
    expected = torch.arange(left, left + 20) < 30
    assert torch.equal(white, expected.flip(0) if frame.flipped else expected)
    assert frame.numbers.tolist() == [20, 60, 0, left, 20, 20]
