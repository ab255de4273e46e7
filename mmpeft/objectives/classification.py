"""Classification: cross entropy with label smoothing, and top-1 accuracy."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from mmpeft.objectives.base import Batch, Objective


class Classification(Objective):
    """Cross entropy between ``model(batch["image"])``, logits (batch, classes), and ``batch["label"]``, (batch,).

    ``L = -sum_c q_c log softmax(z)_c`` with ``q = (1 - s) onehot + s / classes``, s the label smoothing (Szegedy et
    al. 2016, arXiv:1512.00567). Scores: ``accuracy`` (top-1, over samples) and ``loss`` (without smoothing).
    """

    def __init__(self, classes: int, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.accuracy = MulticlassAccuracy(num_classes=classes, average="micro")
        self.mean_loss = MeanMetric()

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed cross entropy, and under ``accuracy`` the number of correct answers."""
        logits, label = model(batch["image"]).float(), batch["label"]
        correct = (logits.detach().argmax(-1) == label).sum()
        return cross_entropy(logits, label, reduction="sum", label_smoothing=self.label_smoothing), {
            "accuracy": correct
        }

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch to accuracy and loss."""
        logits, label = model(batch["image"]).float(), batch["label"]
        self.accuracy.update(logits, label)
        self.mean_loss.update(cross_entropy(logits, label, reduction="none"))

    def compute(self) -> dict[str, float]:
        """Return ``accuracy`` (fraction) and ``loss`` (nats)."""
        scores = {"accuracy": float(self.accuracy.compute()), "loss": float(self.mean_loss.compute())}
        self.accuracy.reset()
        self.mean_loss.reset()
        return scores
