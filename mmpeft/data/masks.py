"""Images with a class for every pixel: image and mask pass through the same changes of place."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from mmpeft.data.config import DataConfig
from mmpeft.data.image_sets import verify_images
from mmpeft.data.pictures import PictureError, named, size_of
from mmpeft.data.preprocessing import preprocessing
from mmpeft.data.readers import MASK_CLASSES, READERS
from mmpeft.data.samples import IGNORED, DataSplits, ImageSplit, Sample, listed
from mmpeft.data.splits import cut_pool

PairTransform = Callable[[Image.Image, tv_tensors.Mask], tuple[Tensor, Tensor]]


class MaskedSplit(ImageSplit):
    """One split: dicts with ``image`` (channels x height x width), ``mask`` (height x width, integers) and ``id``."""

    def __init__(self, samples: Sequence[Sample], classes: tuple[str, ...], transform: PairTransform) -> None:
        self.samples, self.classes, self.together = samples, classes, transform

    def __getitem__(self, index: int) -> dict[str, object]:
        sample = self.samples[index]
        with named(sample.id):
            picture = sample.open().convert("RGB")
            classes = tv_tensors.Mask(read_mask(sample, picture.size, len(self.classes)))
            image, mask = self.together(picture, classes)
        return {"image": image, "mask": mask, "id": sample.id}

    def describe(self, index: int) -> str:
        """Say how much of a picture each class covers."""
        sample = self.samples[index]
        mask = read_mask(sample, size_of(sample.open), len(self.classes))
        return ", ".join(f"{name} {share:.0%}" for name, share in class_shares(mask, self.classes).items())


def class_shares(mask: Tensor, classes: tuple[str, ...]) -> dict[str, float]:
    """Return the share of the labelled pixels that each class has, those without any left out."""
    counts = torch.bincount(mask[mask != IGNORED].flatten().long(), minlength=len(classes))
    shares = (counts / counts.sum()).tolist()
    return {name: share for name, share in zip(classes, shares, strict=True) if share}


def load_masks(config: DataConfig, model: nn.Module) -> DataSplits:
    """Read images and masks, split them, and prepare them in the size and the values that the model wants.

    The whole picture is resized to the model's input, whatever its shape; masks by their nearest pixel.

    Raises:
        ValueError: For anything wrong with the data: files are named, and how many there are.
    """
    if config.name not in MASK_CLASSES:
        raise ValueError(f"data.name: {config.name!r} has no masks: use {' or '.join(sorted(MASK_CLASSES))}")
    samples = READERS[config.name](config)
    classes = MASK_CLASSES[config.name](config)
    cut = cut_pool(samples, config)
    if config.verify:
        chosen = [sample for part in cut.values() for sample in part]
        verify_images(chosen, config)
        _verify_masks(chosen, classes, config)
    training, plain = _transforms(config, model)
    splits = {name: MaskedSplit(part, classes, training if name == "train" else plain) for name, part in cut.items()}
    return DataSplits(splits["train"], splits["validation"], splits["test"], classes)


def read_mask(sample: Sample, size: tuple[int, int], classes: int) -> Tensor:
    """Return the mask of a sample whose image has this width and height: (height, width), bytes.

    Raises:
        ValueError: If it can't be read, has another size, or values that are no class.
    """
    assert sample.mask is not None
    try:
        with named(sample.id):
            return _checked(sample.mask(), size, classes)
    except PictureError as error:
        raise ValueError(f"mask of {sample.id}: {error.reason}") from error


def _checked(mask: Image.Image, size: tuple[int, int], classes: int) -> Tensor:
    if mask.size != size:
        turned = ", turned as its EXIF data say: turn the mask too" if mask.size == size[::-1] else ""
        raise ValueError(f"it has {mask.size[0]} x {mask.size[1]} pixels, its image {size[0]} x {size[1]}{turned}")
    values = torch.from_numpy(np.array(mask))
    unknown = sorted({int(value) for value in values.unique()} - {*range(classes), IGNORED})
    if unknown:
        raise ValueError(f"values {listed(unknown)} are no class (0 to {classes - 1}, or {IGNORED} for none)")
    return values


def _verify_masks(samples: Sequence[Sample], classes: tuple[str, ...], config: DataConfig) -> None:
    problems, present = [], set[int]()
    for sample in samples:
        try:
            present |= set(read_mask(sample, size_of(sample.open), len(classes)).unique().tolist())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        where = config.mask_path or config.name
        raise ValueError(
            f"data {where}: {len(problems)} of {len(samples)} masks can't be used: {listed(problems, separator='; ')}"
        )
    labelled = sorted(present - {IGNORED})
    if len(labelled) < 2:
        all_of = f"one class, {classes[labelled[0]]!r}" if labelled else "no class"
        raise ValueError(f"data {config.mask_path or config.name}: every pixel of the masks is of {all_of}")


def _transforms(config: DataConfig, model: nn.Module) -> tuple[PairTransform, PairTransform]:
    settings = preprocessing(model)
    size = settings["input_size"][1:]
    interpolation = v2.InterpolationMode(settings["interpolation"])
    last = [
        v2.Resize(size, interpolation),
        v2.ToImage(),
        v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64, "others": None}, scale=True),
        v2.Normalize(settings["mean"], settings["std"]),
        v2.ToPureTensor(),
    ]
    return v2.Compose([*(_AUGMENTATIONS[name](size, config) for name in config.augment), *last]), v2.Compose(last)


_AUGMENTATIONS: dict[str, Callable[[tuple[int, int], DataConfig], nn.Module]] = {
    "flip": lambda size, config: v2.RandomHorizontalFlip(),
    "crop": lambda size, config: v2.RandomResizedCrop(size, scale=config.crop_scale or (0.5, 1.0)),
    "shift": lambda size, config: v2.Compose([v2.Resize([side * 8 // 7 for side in size]), v2.RandomCrop(size)]),
    "rotate": lambda size, config: v2.RandomRotation(
        10, v2.InterpolationMode.BILINEAR, fill={tv_tensors.Mask: IGNORED, "others": 0}
    ),
    "colour": lambda size, config: v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
}
"""As for images alone, with the mask in the same place: what a rotation uncovers belongs to no class."""
