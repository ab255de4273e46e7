"""The loss of language models: every token that counts weighs the same, whatever batch or process it is in."""

from __future__ import annotations

import math

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from mmpeft.objectives.base import Batch, Objective
from mmpeft.objectives.generation import Answers

PASSED = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids")
"""What of a batch goes to the model."""


def score_tokens(
    model: nn.Module, batch: Batch, rows: slice = slice(None), counted: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of each token with a weight: log-probability, whether it is the likeliest, its weight, and its row.

    All are (counted,); only some rows of the batch are looked at where ``rows`` says so. ``counted`` (rows, length)
    are other tokens than those with a weight.
    """
    weights = batch["weights"][rows]
    counted = weights > 0 if counted is None else counted
    scores, right = model(counted=counted, **{name: batch[name][rows] for name in PASSED if name in batch})
    return scores, right, weights[counted], counted.nonzero()[:, 0]


class LanguageModelling(Objective):
    """Cross entropy of ``weights`` by what a `heads.language.TokenScorer` gives: ``-sum_t w_t log p(x_t | x_<t)``.

    Its weight is ``sum_t w_t``, so the trainer divides by the tokens of the whole optimizer step. Scores: ``loss``
    (nats per token), ``perplexity`` and ``token_accuracy``; with `Answers` also those of what the model writes.
    """

    score_names: tuple[str, ...] = ("loss", "perplexity", "token_accuracy")

    sums: Tensor
    """Summed loss, right tokens and weights of the evaluation so far, on this process."""

    def __init__(self, answers: Answers | None = None) -> None:
        super().__init__()
        self.answers = answers
        if answers is not None:
            self.score_names = (*self.score_names, *answers.score_names)
        self.register_buffer("sums", torch.zeros(3, dtype=torch.float64), persistent=False)

    def weight(self, batch: Batch) -> float:
        """Return the sum of the tokens' weights."""
        return float(batch["weights"].sum())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed cross entropy, and under ``token_accuracy`` the weights of the tokens that are right."""
        scores, right, weights, _ = score_tokens(model, batch)
        return -(weights * scores).sum(), {"token_accuracy": (right * weights).sum()}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch to the sums; let the model answer, if it is to."""
        loss, logs = self.loss(model, batch)
        self.sums += torch.stack([loss.double(), logs["token_accuracy"].double(), batch["weights"].sum().double()])
        if self.answers is not None and "prompt_ids" in batch:
            self.answers.update(model, batch)

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        loss, right, weights = reduce(self.sums.clone(), reduction="sum").tolist()
        self.sums.zero_()
        scores = {
            "loss": loss / weights,
            "perplexity": math.exp(min(loss / weights, 700)),
            "token_accuracy": right / weights,
        }
        return scores | (self.answers.compute() if self.answers is not None else {})
