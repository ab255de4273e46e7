from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mmpeft.data import DataConfig
from mmpeft.data.masks import IGNORED, load_masks
from mmpeft.zoo import load_model


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, dtype=np.uint8), mode).save(path)


def make_pair(root, name, *, split="", size=(12, 16)):
    """A picture whose red channel says the class of each pixel (times 100), with noise in the others."""
    generator = np.random.default_rng(abs(hash(name)) % 1000)
    mask = np.zeros(size, dtype=np.uint8)
    mask[2:8, 3:9] = 1
    mask[5:, 10:] = 2
    image = generator.integers(0, 50, (*size, 3))
    image[..., 0] = mask * 100
    save(root / "images" / split / f"{name}.png", image)
    save(root / "masks" / split / f"{name}.png", mask)


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        make_pair(tmp_path, f"{number:02d}")
    (tmp_path / "masks" / "classes.txt").write_text("ground\nbox\n\ncorner\n")
    return tmp_path


def make_config(root, **values):
    return DataConfig(name="masks", path=str(root / "images"), mask_path=str(root / "masks"), **values)


@pytest.fixture(scope="module")
def model():
    return load_model("tiny/vit")


def red_classes(image):
    """The classes that the red channel of a prepared picture says."""
    return ((image[0] + 1) / 2 * 255 / 100).round().long()


def test_images_with_masks_in_another_folder(folder, model):
    splits = load_masks(make_config(folder), model)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [7, 1, 2]
    assert splits.classes == ("ground", "box", "corner")
    sample = splits.train[0]
    assert sample["image"].shape == (3, 32, 32)
    assert sample["mask"].shape == (32, 32)
    assert sample["mask"].dtype == torch.int64
    assert (red_classes(sample["image"]) == sample["mask"]).float().mean() > 0.9
    assert splits.train.describe(0) == "ground 59%, box 19%, corner 22%"
    assert torch.equal(pickle.loads(pickle.dumps(splits.train))[0]["mask"], sample["mask"])


def test_splits_of_the_folders_are_kept(tmp_path, model):
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        for number in range(count):
            make_pair(tmp_path, str(number), split=split)
    splits = load_masks(make_config(tmp_path, classes=["ground", "box", "corner"]), model)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [4, 2, 3]
    assert splits.val.ids == ["val/0.png", "val/1.png"]


@pytest.mark.parametrize("augment", ["flip", "crop", "shift", "rotate", "colour"])
def test_mask_and_image_stay_together(folder, model, augment):
    train = load_masks(make_config(folder, augment=[augment]), model).train
    plain, seen = load_masks(make_config(folder), model).train[0], set()
    for seed in range(6):
        torch.manual_seed(seed)
        sample = train[0]
        labelled = sample["mask"] != IGNORED
        seen.add(sample["mask"].numpy().tobytes())
        assert labelled.float().mean() > 0.7
        if augment != "colour":
            agreeing = (red_classes(sample["image"]) == sample["mask"])[labelled]
            assert agreeing.float().mean() > 0.8
    moved = {plain["mask"].numpy().tobytes()} != seen
    assert moved == (augment != "colour")


def test_masks_with_a_palette_and_of_two_values(folder, model):
    path = folder / "masks" / "03.png"
    palette = Image.fromarray(np.asarray(Image.open(path)), "P")
    palette.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    palette.save(path)
    Image.open(folder / "masks" / "04.png").point(lambda value: 255 * (value == 1), "1").save(folder / "masks/04.png")
    splits = load_masks(make_config(folder), model)
    found = {sample["id"]: sample["mask"] for split in (splits.train, splits.val, splits.test) for sample in split}  # type: ignore[attr-defined]
    assert torch.equal(found["03.png"], found["05.png"])
    assert set(found["04.png"].unique().tolist()) == {0, 1}


def test_every_wrong_mask_is_named(folder, model):
    save(folder / "masks" / "01.png", np.full((12, 16), 7))
    save(folder / "masks" / "02.png", np.zeros((12, 12)))
    save(folder / "masks" / "05.png", np.zeros((12, 16, 3)))
    (folder / "masks" / "06.png").write_text("no picture")
    with pytest.raises(ValueError, match="4 of 10 masks can't be used") as caught:
        load_masks(make_config(folder), model)
    for part in (
        "01.png: values 7 are no class (0 to 2, or 255 for none); mask",
        "02.png: it has 12 x 12 pixels, its image 16 x 12",
        "05.png: mode 'RGB' where one index",
        "06.png: cannot identify",
    ):
        assert part in str(caught.value)
    splits = load_masks(make_config(folder, verify=False), model)
    with pytest.raises(ValueError, match=r"mask of \d+.png: (values 7 are no class|mode|it has|cannot)"):
        [sample["id"] for split in (splits.train, splits.val, splits.test) for sample in split]  # type: ignore[attr-defined]


def test_images_and_masks_are_one_to_one(folder, model):
    (folder / "masks" / "01.png").rename(folder / "masks" / "11.png")
    with pytest.raises(ValueError, match=r"1 of 10 images have no mask in .*: 01.png; 1 of 10 masks have no image in"):
        load_masks(make_config(folder), model)


def test_missing_parts_are_named(folder, tmp_path, model):
    (folder / "masks" / "classes.txt").unlink()
    with pytest.raises(ValueError, match=r"data.classes: missing, and there is no .*classes.txt"):
        load_masks(make_config(folder), model)
    with pytest.raises(ValueError, match=r"data.path: '.*nowhere.images' is not a folder"):
        load_masks(make_config(tmp_path / "nowhere"), model)
    with pytest.raises(ValueError, match=r"data.name: 'digits' has no masks: use masks or scenes"):
        load_masks(DataConfig(name="digits"), model)
    with pytest.raises(ValueError, match="mask_path: missing; name: masks needs"):
        DataConfig(name="masks", path="images")
    with pytest.raises(ValueError, match="mask_path: 'masks' is for name: masks, not for name: folder"):
        DataConfig(name="folder", path="images", mask_path="masks")


def test_halves_are_of_classes_that_images_have(folder, model):
    with pytest.raises(ValueError, match=r"data\.half: 'base' is for images with a class, not for masks or captions"):
        load_masks(make_config(folder, half="base"), model)
