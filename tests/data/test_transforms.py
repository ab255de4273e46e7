from __future__ import annotations

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data
from mmpeft.data.transforms import make_transforms
from mmpeft.zoo import load_model


def test_a_model_brings_its_own_preprocessing():
    model = timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay={"mean": (0.25, 0.25, 0.25)})
    _, transform = make_transforms(DataConfig(name="digits"), model)
    image = transform(Image.new("RGB", (50, 40), (255, 255, 255)))
    assert image.shape == (3, 224, 224)
    assert torch.allclose(image, torch.full_like(image, (1 - 0.25) / 0.5))


def test_the_embedded_model_sees_32_pixels_in_its_range():
    train = load_data(DataConfig(name="digits"), load_model("tiny/vit")).train
    assert train[0]["image"].shape == (3, 32, 32)
    assert train[0]["image"].min() == -1
    assert 0.5 < train[0]["image"].max() <= 1


def test_augmentations_change_training_images_only():
    config = DataConfig(name="digits", augment=["flip", "crop", "rotate", "colour"])
    torch.manual_seed(0)
    splits = load_data(config, load_model("tiny/vit"))
    assert splits.train[0]["image"].shape == (3, 32, 32)
    assert not torch.equal(splits.train[0]["image"], splits.train[0]["image"])
    assert torch.equal(splits.val[0]["image"], splits.val[0]["image"])


def test_a_flip_mirrors():
    transform, _ = make_transforms(DataConfig(name="digits", augment=["flip"]), to_tensor)
    image = Image.new("RGB", (4, 4))
    image.putpixel((0, 0), (255, 0, 0))
    seen = {tuple(transform(image)[0].nonzero()[0].tolist()) for _ in range(50)}
    assert seen == {(0, 0), (0, 3)}


def test_what_does_not_say_its_preprocessing_is_refused():
    with pytest.raises(ValueError, match="Linear has neither a pretrained_cfg"):
        load_data(DataConfig(name="digits"), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="crop needs a model"):
        load_data(DataConfig(name="digits", augment=["crop"]), to_tensor)


def test_a_wide_image_is_cut_at_the_centre_or_squashed():
    model = timm.create_model("vit_tiny_patch16_224", pretrained_cfg_overlay={"mean": (0.0,) * 3, "std": (1.0,) * 3})
    image = Image.new("RGB", (80, 40))
    image.paste((255, 0, 0), (0, 0, 10, 40))
    reds = [make_transforms(DataConfig(name="digits", fit=fit), model)[1](image)[0].mean() for fit in ("crop", "whole")]
    assert reds == pytest.approx([0, 1 / 8], abs=2e-3)
    with pytest.raises(ValueError, match="fit: whole needs a model"):
        make_transforms(DataConfig(name="digits", fit="whole"), to_tensor)


def test_a_shift_moves_the_place_of_the_cut():
    model = load_model("tiny/vit")
    transform, _ = make_transforms(DataConfig(name="digits", augment=["shift"]), model)
    image = Image.linear_gradient("L").convert("RGB")
    torch.manual_seed(0)
    tops = [transform(image)[0, 0, 16].item() for _ in range(40)]
    assert transform(image).shape == (3, 32, 32)
    steps = sorted({round(top, 4) for top in tops})
    assert len(steps) == 5  # 36 rows, of which 32 are kept
    assert steps[0] == pytest.approx(-0.98, abs=0.03)


def test_crops_keep_the_share_that_was_asked_for():
    model = load_model("tiny/vit")
    image = Image.linear_gradient("L").convert("RGB")
    torch.manual_seed(0)

    def spans(scale):
        transform, _ = make_transforms(DataConfig(name="digits", augment=["crop"], crop_scale=scale), model)
        return [(column[-1] - column[0]).item() for column in (transform(image)[0, :, 16] for _ in range(40))]

    assert max(spans((0.08, 0.1))) < 1.0 < min(spans((0.95, 1.0)))
