"""Classification: cross entropy with label smoothing, and top-1 accuracy."""

from __future__ import annotations

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmpeft.objectives.base import Batch, Objective, at_least_single


class Classification(Objective):
    """Cross entropy between ``model(batch["image"])``, logits (batch, classes), and ``batch["label"]``, (batch,).

    ``L = -sum_c q_c log softmax(z)_c`` with ``q = (1 - s) onehot + s / classes``, s the label smoothing (Szegedy et
    al. 2016, arXiv:1512.00567). Scores: ``accuracy`` (top-1, over samples) and ``loss`` (in nats, without smoothing).
    """

    score_names = ("accuracy", "loss")

    totals: Tensor
    """Samples, correct answers and summed loss of the evaluation so far, on this process."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("totals", torch.zeros(3), persistent=False)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed cross entropy, and under ``accuracy`` the number of correct answers."""
        logits, label = at_least_single(model(batch["image"])), batch["label"]
        correct = (logits.detach().argmax(-1) == label).sum()
        loss = cross_entropy(logits, label, reduction="sum", label_smoothing=self.label_smoothing)
        return loss, {"accuracy": correct}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch to accuracy and loss."""
        logits, label = at_least_single(model(batch["image"])), batch["label"]
        correct, loss = (logits.argmax(-1) == label).sum(), cross_entropy(logits, label, reduction="sum")
        self.totals += torch.stack([torch.ones_like(label).sum(), correct, loss])

    def compute(self) -> dict[str, float]:
        """Return ``accuracy`` (a fraction) and ``loss``."""
        count, correct, loss = reduce(self.totals, reduction="sum").tolist()
        self.totals.zero_()
        return {"accuracy": correct / count, "loss": loss / count}
