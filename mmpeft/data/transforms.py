"""Preprocessing as the model was pretrained with it, after the augmentations that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from mmpeft.data.config import DataConfig
from mmpeft.data.pictures import check_shape
from mmpeft.data.preprocessing import preprocessing

Transform = Callable[[Image.Image], Tensor]
SMALLEST = 7 / 8
"""Of a resized picture, what ``augment: [shift]`` keeps."""
Size = tuple[int, int]
"""Height and width in pixels."""


def make_transforms(config: DataConfig, model_or_transform: nn.Module | Transform) -> tuple[Transform, Transform]:
    """Return the transforms of training and of evaluation images, PIL to float tensor.

    A model of timm, open_clip or transformers brings its own: input size, resampling, crop, mean and standard
    deviation. A transform is used as is.

    Raises:
        ValueError: If a model does not say how its images are prepared.
    """
    if not isinstance(model_or_transform, nn.Module):
        if config.fit == "whole":
            raise ValueError(
                "data.fit: whole needs a model that says its input size; resize in your own transform instead"
            )
        steps = [_AUGMENTATIONS[name](None, config) for name in config.augment]
        return transforms.Compose([*steps, model_or_transform]), model_or_transform
    settings = preprocessing(model_or_transform)
    if config.fit == "whole":
        settings |= {"crop_pct": 1.0, "crop_mode": "squash"}
    steps = [_AUGMENTATIONS[name](settings["input_size"][1:], config) for name in config.augment]
    training = settings if {"crop", "shift"}.isdisjoint(config.augment) else settings | {"crop_pct": 1.0}
    checked = Checked(max(settings["input_size"][1:]), settings["crop_pct"])
    last = create_transform(**settings)
    return transforms.Compose([checked, *steps, create_transform(**training)]), transforms.Compose([checked, last])


@dataclass(frozen=True)
class Checked:
    """Refuses pictures that are too large or too long, as they are or with their shorter side resized."""

    side: int
    """Of the model's input."""
    share: float
    """Of the resized picture that is kept."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the picture.

        Raises:
            ValueError: If it would not stay within `pictures.MOST_PIXELS` and `pictures.MOST_ASPECT`.
        """
        check_shape(*image.size, shorter=round(self.side / min(self.share, SMALLEST)))
        return image


def _crop(size: Size | None, config: DataConfig) -> nn.Module:
    return transforms.RandomResizedCrop(_known(size, "crop"), scale=config.crop_scale or (0.7, 1.0))


def _shift(size: Size | None, config: DataConfig) -> nn.Module:
    height, width = _known(size, "shift")
    larger = transforms.Resize(max(height, width) * 8 // 7, InterpolationMode.BICUBIC)
    return nn.Sequential(larger, transforms.RandomCrop((height, width)))


def _known(size: Size | None, name: str) -> Size:
    if size is None:
        raise ValueError(
            f"data.augment: {name} needs a model that says its input size; crop in your own transform instead"
        )
    return size


_AUGMENTATIONS: dict[str, Callable[[Size | None, DataConfig], nn.Module]] = {
    "flip": lambda size, config: transforms.RandomHorizontalFlip(),
    "crop": _crop,
    "shift": _shift,
    "rotate": lambda size, config: transforms.RandomRotation(10, InterpolationMode.BILINEAR),
    "colour": lambda size, config: transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
}
