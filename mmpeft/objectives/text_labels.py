"""Texts with a class or a number: losses on a library's own head, and the scores of GLUE."""

from __future__ import annotations

import torch
from accelerate.utils import gather_object, reduce
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from mmpeft.objectives.base import Batch, Objective, at_least_single

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What of a batch goes to the model."""


def head_outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Return what the head gives, (batch, outputs), in single precision at least."""
    logits: Tensor = model(**{name: batch[name] for name in INPUTS if name in batch}).logits
    return at_least_single(logits)


class TextClassification(Objective):
    """Cross entropy in nats, and the scores of GLUE's classification tasks.

    ``accuracy``; ``f1``, of two classes that of the second one (MRPC, QQP), of more the mean over all; ``matthews``,
    the correlation of truth and prediction (CoLA), for any number of classes (Gorodkin 2004); ``loss``.
    """

    score_names = ("accuracy", "f1", "matthews", "loss")

    table: Tensor
    """Samples by (true class, predicted class) of the evaluation so far, on this process."""
    summed: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(classes, classes, dtype=torch.float64), persistent=False)
        self.register_buffer("summed", torch.zeros(1, dtype=torch.float64), persistent=False)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed cross entropy, and under ``accuracy`` the number of right answers."""
        logits = head_outputs(model, batch)
        right = (logits.argmax(-1) == batch["label"]).sum()
        return cross_entropy(logits, batch["label"], reduction="sum"), {"accuracy": right}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch to the table."""
        logits, label = head_outputs(model, batch), batch["label"]
        self.table.index_put_((label, logits.argmax(-1)), torch.ones_like(label).to(self.table), accumulate=True)
        self.summed += cross_entropy(logits, label, reduction="sum")

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        table, loss = reduce(self.table.clone(), reduction="sum"), reduce(self.summed.clone(), reduction="sum")
        self.table.zero_()
        self.summed.zero_()
        return table_scores(table) | {"loss": float(loss / table.sum())}


def table_scores(table: Tensor) -> dict[str, float]:
    """Return accuracy, F1 and Matthews correlation of a table (true class, predicted class).

    ``f1_c = 2 t_cc / (row_c + column_c)``, and the correlation is that of the two sets of indicators of the classes; 0
    where either has but one class.
    """
    true, said, count = table.sum(1), table.sum(0), table.sum()
    each = 2 * table.diag() / (true + said).clamp(min=1)
    spread = (count**2 - true.square().sum()) * (count**2 - said.square().sum())
    together = count * table.trace() - true @ said
    return {
        "accuracy": float(table.trace() / count),
        "f1": float(each[1] if len(each) == 2 else each.mean()),
        "matthews": float(together / spread.sqrt()) if spread > 0 else 0.0,
    }


class TextRegression(Objective):
    """Squared error of the only output, and the scores of STS-B.

    ``pearson`` and ``spearman`` correlation (0 where all predictions or all labels are the same) and ``loss``, the mean
    squared error.
    """

    score_names = ("pearson", "spearman", "loss")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, float]] = []

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed squared error."""
        predicted = head_outputs(model, batch)[:, 0]
        return mse_loss(predicted, batch["label"].to(predicted), reduction="sum"), {}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Keep predictions and labels."""
        predicted = head_outputs(model, batch)[:, 0]
        self.seen += zip(predicted.tolist(), batch["label"].tolist(), strict=True)

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        pairs = torch.tensor(gather_object(self.seen), dtype=torch.float64)
        self.seen = []
        predicted, true = pairs.unbind(1)
        flat = bool((predicted == predicted[0]).all() or (true == true[0]).all())
        scores = {name: 0.0 if flat else float(of(predicted, true).statistic) for name, of in CORRELATIONS.items()}
        return scores | {"loss": float(mse_loss(predicted, true))}


CORRELATIONS = {"pearson": pearsonr, "spearman": spearmanr}
