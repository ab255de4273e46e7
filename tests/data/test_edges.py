from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from mmpeft.data.edges import coloured, edges


def test_the_edges_of_a_square_are_thin_and_where_it_ends() -> None:
    image = Image.new("RGB", (32, 32), (40, 40, 160))
    ImageDraw.Draw(image).rectangle((8, 10, 23, 25), fill=(230, 60, 40))
    found = np.asarray(edges(image))[..., 0] == 255
    rows, columns = np.nonzero(found)
    assert rows.min() in (9, 10) and rows.max() in (25, 26)
    assert columns.min() in (7, 8) and columns.max() in (23, 24)
    assert found[:, 16].sum() == found[17].sum() == 2  # one place for each side
    assert 50 <= found.sum() <= 64


def test_colours_of_one_brightness_have_an_edge_and_a_faint_change_has_none() -> None:
    for colour, there in (((0, 180, 0), True), ((182, 4, 2), False)):
        image = Image.new("RGB", (32, 32), (180, 0, 0))
        image.paste(colour, (16, 0, 32, 32))
        assert bool(np.asarray(edges(image)).any()) == there


def test_classes_have_colours_of_their_own() -> None:
    mask = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    found = np.asarray(coloured(mask)).reshape(24, 3)
    assert (found[0] == 0).all()
    distances = np.abs(found[:, None].astype(int) - found[None]).sum(-1)
    assert distances[~np.eye(24, dtype=bool)].min() > 20
