"""What adapted models say of test images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.data import DataSplits


def refuse_one_class(classes: Sequence[str], data: str) -> None:
    """Raise a ValueError if there is nothing to tell apart: any model is always right then."""
    if len(classes) < 2:
        raise ValueError(f"data: {data} has one class, {classes[0]!r}: there is nothing to learn about one class alone")


@torch.no_grad()
def answer_by_class(model: nn.Module, data: DataSplits, index: int) -> Prediction:
    """Return a test image and the probability of each class."""
    sample = data.test.samples[checked_index(data.test, index)]
    shares = model(data.test[index]["image"][None]).softmax(-1)[0]
    return Prediction(sample=sample, shares=dict(zip(data.classes, shares.tolist(), strict=True)))
