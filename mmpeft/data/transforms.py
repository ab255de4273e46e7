"""Preprocessing as the model was pretrained with it, after the augmentations that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn
from torchvision import transforms

from mmpeft.data.config import DataConfig
from mmpeft.data.preprocessing import preprocessing

Transform = Callable[[Image.Image], Tensor]


def make_transforms(config: DataConfig, model_or_transform: nn.Module | Transform) -> tuple[Transform, Transform]:
    """Return the transforms of training and of evaluation images, PIL to float tensor.

    A model of timm, open_clip or transformers brings its own: input size, resampling, crop, mean and standard
    deviation. A transform is used as is.

    Raises:
        ValueError: If a model does not say how its images are prepared.
    """
    if not isinstance(model_or_transform, nn.Module):
        steps = [_AUGMENTATIONS[name](None) for name in config.augment]
        return transforms.Compose([*steps, model_or_transform]), model_or_transform
    own = preprocessing(model_or_transform)
    steps = [_AUGMENTATIONS[name](own["input_size"][1:]) for name in config.augment]
    training = own | {"crop_pct": 1.0} if "crop" in config.augment else own
    return transforms.Compose([*steps, create_transform(**training)]), create_transform(**own)


def _crop(size: tuple[int, int] | None) -> nn.Module:
    if size is None:
        raise ValueError(
            "data.augment: crop needs a model that says its input size; crop in your own transform instead"
        )
    return transforms.RandomResizedCrop(size, scale=(0.7, 1.0))


_AUGMENTATIONS: dict[str, Callable[[tuple[int, int] | None], nn.Module]] = {
    "flip": lambda size: transforms.RandomHorizontalFlip(),
    "crop": _crop,
    "rotate": lambda size: transforms.RandomRotation(10, transforms.InterpolationMode.BILINEAR),
    "colour": lambda size: transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
}
