from __future__ import annotations

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data
from mmpeft.data.drawing import draw, draw_mask
from mmpeft.data.readers import READERS
from mmpeft.data.readers.scenes import scenes_of
from mmpeft.data.scenes import COLOURS, PLACES, SHAPES, SIZES, STYLES, TEXTURES, imagine, is_held_out, with_articles


def read(**options):
    config = DataConfig(name="scenes", **options)
    return READERS["scenes"](config)


def test_the_protocol_and_its_options():
    splits = load_data(DataConfig(name="scenes", verify=False), to_tensor)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [192, 192, 1536]
    assert splits.classes == SHAPES
    assert splits.train[0]["image"].shape == (3, 32, 32)
    few = load_data(DataConfig(name="scenes", per_class=2, split_seed=1, verify=False), to_tensor)
    assert len(few.train) == 24
    assert few.val.ids == splits.val.ids
    assert not set(few.train.ids) <= set(splits.train.ids)


def test_ids_are_unique_over_all_styles():
    ids = [sample.id for style in STYLES for sample in read(style=style)]
    assert len(set(ids)) == len(ids) == 6 * 1920


@pytest.mark.parametrize("style", STYLES)
def test_a_picture_is_the_same_whenever_and_wherever_it_is_opened(style):
    sample = read(style=style)[700]
    again = pickle.loads(pickle.dumps(read(style=style)[700]))
    assert np.array_equal(sample.open(), again.open())
    assert np.array_equal(sample.mask(), again.mask())
    assert sample.caption == again.caption
    assert sample.open().size == (32, 32)


def test_pictures_differ():
    pictures = {hashlib.sha256(np.asarray(sample.open()).tobytes()).digest() for sample in read()[::4]}
    assert len(pictures) == 480


def test_everything_is_drawn_about_equally_often():
    scenes = scenes_of("sketch")
    for name, values in (("colour", COLOURS), ("size", SIZES), ("place", PLACES), ("texture", TEXTURES)):
        counts = Counter(getattr(scene, name) for scene in scenes)
        expected = len(scenes) / len(values)
        assert set(counts) == set(values)
        assert all(0.75 * expected < count < 1.25 * expected for count in counts.values())
    assert all(scene.colour != scene.ground for scene in scenes)


def test_a_caption_tells_what_is_drawn():
    for scene in scenes_of("neon")[::50]:
        for word in (scene.size, scene.colour, scene.shape):
            assert word in scene.caption
    assert len({scene.caption for scene in scenes_of("neon")}) > 1500
    assert (
        with_articles("a arrow, a orange star, a hourglass, a heart")
        == "an arrow, an orange star, an hourglass, a heart"
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mask_is_where_the_ink_is(shape):
    """On a plain scene the colour inside the mask is the figure's, and outside the ground's."""
    checked = 0
    for number in range(30):
        scene = imagine((99, number), shape=shape, style="plain")
        if scene.texture != "plain":
            continue
        picture, mask = np.asarray(draw(scene), dtype=float), np.asarray(draw_mask(scene))
        assert set(np.unique(mask)) == {0, SHAPES.index(shape) + 1}
        inside = mask > 0
        gap = np.linalg.norm(picture[inside].mean(0) - picture[~inside].mean(0))
        assert picture[inside].std(0).mean() < gap
        assert np.linalg.norm(picture[inside] - picture[inside].mean(0), axis=1).mean() < 0.35 * gap
        checked += 1
    assert checked >= 5


def test_sizes_and_places_are_what_they_say():
    areas = {size: [] for size in SIZES}
    for number in range(300):
        scene = imagine((98, number), shape="square", style="plain")
        rows, columns = np.nonzero(draw_mask(scene))
        areas[scene.size].append(len(rows))
        place = PLACES.index(scene.place)
        assert abs(columns.mean() - 15.5 - 5.5 * (place % 3 - 1)) < 1.5
        assert abs(rows.mean() - 15.5 - 5.5 * (place // 3 - 1)) < 1.5
    assert max(areas["small"]) < min(areas["medium"])
    assert max(areas["medium"]) < min(areas["large"])


def test_one_combination_of_every_shape_is_held_out():
    held = [(shape, colour) for shape in SHAPES for colour in COLOURS if is_held_out(shape, colour)]
    assert Counter(shape for shape, _ in held) == dict.fromkeys(SHAPES, 1)
    assert {colour for _, colour in held} == set(COLOURS)
