"""What an adapted two-tower model says of test pictures and captions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.data import DataSplits
from mmpeft.data.captions import Tokenizer, captions_of
from mmpeft.heads.pairs import PairEncoder
from mmpeft.objectives.contrastive import unit


def likely_captions(model: PairEncoder, data: DataSplits, tokenizer: Tokenizer, index: int) -> Prediction:
    """Return a test picture, and how likely each caption of the test split is."""
    samples = data.test.samples
    sample = samples[checked_index(data.test, index)]
    captions = sorted({caption for other in samples for caption in captions_of(other)})
    likely = match(model, data, [index], captions, tokenizer).softmax(1)[0]
    return Prediction(sample=sample, shares=dict(zip(captions, likely.tolist(), strict=True)))


def best_picture(model: PairEncoder, data: DataSplits, tokenizer: Tokenizer, query: str) -> Prediction:
    """Return the test picture that is nearest to a text, and how likely each of the others is."""
    samples = data.test.samples
    likely = match(model, data, range(len(samples)), [query], tokenizer)
    shares = dict(zip((sample.id for sample in samples), likely.softmax(0)[:, 0].tolist(), strict=True))
    return Prediction(sample=samples[int(likely.argmax())], shares=shares)


@torch.no_grad()
def match(
    model: PairEncoder, data: DataSplits, indices: Iterable[int], captions: Sequence[str], tokenizer: Tokenizer
) -> Tensor:
    """Return the logits of test pictures and captions, (pictures, captions)."""
    image = torch.cat([model.joint.image(data.test[index]["image"][None]) for index in indices])
    text = torch.cat([model.joint.text(tokenizer([caption])) for caption in captions])
    return model.joint.scale() * unit(image) @ unit(text).T
