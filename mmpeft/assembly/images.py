"""What adapted models say of test images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.data import DataSplits


def refuse_one_class(classes: Sequence[str], data: str, labels: Iterable[int] | None = None) -> None:
    """Raise a ValueError if there is nothing to tell apart: any model is always right then.

    Args:
        classes: Names of the classes.
        data: What to call the data in the message.
        labels: The classes of the training samples, which may be fewer than those that have a name.
    """
    present = range(len(classes)) if labels is None else sorted(set(labels))
    if len(classes) == 1 or len(present) == 1:
        where = "data" if len(classes) == 1 else "the training samples of data"
        name = classes[present[0] if present else 0]
        raise ValueError(f"{where}: {data} has one class, {name!r}: there is nothing to learn about one class alone")


@torch.no_grad()
def answer_by_class(model: nn.Module, data: DataSplits, index: int) -> Prediction:
    """Return a test image and the probability of each class."""
    sample = data.test.samples[checked_index(data.test, index)]
    shares = model(data.test[index]["image"][None]).softmax(-1)[0]
    return Prediction(sample=sample, shares=dict(zip(data.classes, shares.tolist(), strict=True)))
