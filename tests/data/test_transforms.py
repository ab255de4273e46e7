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
