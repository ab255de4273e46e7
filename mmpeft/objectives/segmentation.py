"""Semantic segmentation: cross entropy over pixels, and the mean intersection over union of a whole split."""

from __future__ import annotations

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmpeft.data.samples import IGNORED
from mmpeft.objectives.base import Batch, Objective, at_least_single


class Segmentation(Objective):
    """Cross entropy between ``model(batch["image"])``, (batch, classes, H, W), and ``batch["mask"]``, (batch, H, W).

    A sum over the pixels that aren't ``IGNORED``; their number is its weight, so every labelled pixel counts the same,
    whatever picture it is in. Scores: ``miou`` (intersection over union, from one confusion matrix over the split, mean
    over the classes that occur in truth or prediction), ``pixel_accuracy`` and ``loss`` (in nats per pixel).
    """

    score_names = ("miou", "pixel_accuracy", "loss")

    confusion: Tensor
    """Pixels of the evaluation so far by (true class, predicted class), on this process."""
    summed: Tensor
    """Their summed loss."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("confusion", torch.zeros(classes, classes, dtype=torch.int64), persistent=False)
        self.register_buffer("summed", torch.zeros(()), persistent=False)

    def weight(self, batch: Batch) -> int:
        """Return the number of labelled pixels."""
        return int((batch["mask"] != IGNORED).sum())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed cross entropy, and under ``pixel_accuracy`` the number of correct pixels."""
        logits, mask = at_least_single(model(batch["image"])), batch["mask"]
        correct = (logits.detach().argmax(1) == mask).sum()
        return cross_entropy(logits, mask, reduction="sum", ignore_index=IGNORED), {"pixel_accuracy": correct}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch to the confusion matrix and the loss."""
        logits, mask = at_least_single(model(batch["image"])), batch["mask"]
        counted = mask != IGNORED
        pairs = mask[counted] * self.classes + logits.argmax(1)[counted]
        self.confusion += torch.bincount(pairs, minlength=self.classes**2).view_as(self.confusion)
        self.summed += cross_entropy(logits, mask, reduction="sum", ignore_index=IGNORED)

    def compute(self) -> dict[str, float]:
        """Return ``miou``, ``pixel_accuracy`` (fractions) and ``loss``."""
        confusion, summed = reduce(self.confusion, reduction="sum").double(), reduce(self.summed, reduction="sum")
        right, pixels = confusion.diagonal(), confusion.sum()
        union = confusion.sum(0) + confusion.sum(1) - right
        occurring = union > 0
        scores = {
            "miou": (right[occurring] / union[occurring]).mean(),
            "pixel_accuracy": right.sum() / pixels,
            "loss": summed / pixels,
        }
        self.confusion.zero_()
        self.summed.zero_()
        return {name: float(score) for name, score in scores.items()}
