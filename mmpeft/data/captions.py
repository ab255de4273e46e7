"""Images with captions, tokenised for a model's text tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import pad

from mmpeft.data.config import DataConfig
from mmpeft.data.image_sets import verify_images
from mmpeft.data.pictures import named
from mmpeft.data.readers import READERS
from mmpeft.data.samples import DataSplits, ImageSplit, Sample
from mmpeft.data.splits import cut_pool
from mmpeft.data.transforms import Transform, make_transforms

Tokenizer = Callable[[list[str]], Tensor]
"""Texts to token ids, (texts, context)."""


class CaptionedSplit(ImageSplit):
    """One split: dicts with ``image``, ``text`` (captions x context, token ids), ``captions`` (how many) and ``id``.

    With ``one`` each image comes with one of its captions, drawn anew each time; else with all of them, and rows of
    zeros up to the largest number of captions.
    """

    def __init__(
        self, samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor], tokenizer: Tokenizer, one: bool
    ) -> None:
        self.samples, self.transform, self.tokenizer, self.one = samples, transform, tokenizer, one
        self.most = 1 if one else max((len(captions_of(sample)) for sample in samples), default=1)

    def __getitem__(self, index: int) -> dict[str, object]:
        sample = self.samples[index]
        captions = captions_of(sample)
        if self.one and len(captions) > 1:
            captions = [captions[int(torch.randint(len(captions), ()))]]
        text = pad(self.tokenizer(captions), (0, 0, 0, self.most - len(captions)))
        with named(sample.id):
            image = self.transform(sample.open().convert("RGB"))
        return {"image": image, "text": text, "captions": len(captions), "id": sample.id}

    def describe(self, index: int) -> str:
        """Return a sample's captions."""
        return ", ".join(map(repr, captions_of(self.samples[index])))


def captions_of(sample: Sample) -> list[str]:
    """Return all captions of a sample."""
    assert sample.caption is not None
    return [sample.caption] if isinstance(sample.caption, str) else list(sample.caption)


def load_captions(config: DataConfig, model_or_transform: nn.Module | Transform, tokenizer: Tokenizer) -> DataSplits:
    """Read images and captions, split them by image, and prepare both as the model wants them.

    Raises:
        ValueError: For anything wrong with the data: files are named, and how many there are.
    """
    samples = READERS[config.name](config)
    if any(sample.caption is None for sample in samples):
        raise ValueError(f"data.name: {config.name!r} has no captions: use captions or scenes")
    cut = cut_pool(samples, config)
    if config.verify:
        verify_images([sample for part in cut.values() for sample in part], config)
    training, plain = make_transforms(config, model_or_transform)
    splits = {
        name: CaptionedSplit(part, training if name == "train" else plain, tokenizer, one=name == "train")
        for name, part in cut.items()
    }
    return DataSplits(splits["train"], splits["validation"], splits["test"], ())
