"""What adapted models say of test images."""

from __future__ import annotations

import torch
from torch import nn

from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.data import DataSplits


@torch.no_grad()
def answer_by_class(model: nn.Module, data: DataSplits, index: int) -> Prediction:
    """Return a test image and the probability of each class."""
    sample = data.test.samples[checked_index(data.test, index)]
    shares = model(data.test[index]["image"][None]).softmax(-1)[0]
    return Prediction(sample=sample, shares=dict(zip(data.classes, shares.tolist(), strict=True)))
