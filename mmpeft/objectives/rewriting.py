"""Sequence to sequence: the loss of an encoder-decoder, and scores of what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmpeft.anatomies.headed import backbone_of
from mmpeft.objectives.base import Batch
from mmpeft.objectives.next_token import LanguageModelling
from mmpeft.objectives.overlap import COUNTS, OVERLAPS, overlap_counts, overlap_scores


@dataclass(frozen=True)
class Rewriter:
    """Lets an encoder-decoder write: greedily, or with a beam search."""

    tokenizer: Any
    max_new_tokens: int = 128
    beams: int = 1

    def __call__(self, model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> list[str]:
        """Return what is written for each source (rows, length)."""
        inner: Any = backbone_of(model.module if isinstance(model, DistributedDataParallel) else model)
        how = {"do_sample": False, "max_new_tokens": self.max_new_tokens, "num_beams": self.beams}
        with torch.no_grad():
            ids = inner.generate(input_ids=input_ids, attention_mask=attention_mask, **how)
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


class Rewriting(LanguageModelling):
    """Cross entropy of the target's tokens behind ``start``, the token with which the decoder begins.

    Scores: those of `overlap_scores` for what ``writer`` makes of the sources, then ``loss`` (nats per token),
    ``perplexity`` and ``token_accuracy``.
    """

    score_names = (*OVERLAPS, *LanguageModelling.score_names)

    counts: Tensor
    """Summed counts of the evaluation so far, on this process."""

    def __init__(self, start: int, writer: Rewriter) -> None:
        super().__init__()
        self.start, self.writer = start, writer
        self.register_buffer("counts", torch.zeros(COUNTS, dtype=torch.float64), persistent=False)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed cross entropy, and under ``token_accuracy`` the number of right tokens."""
        labels, weights = batch["labels"], batch["weights"]
        first = labels.new_full((len(labels), 1), self.start)
        framed = {"decoder_input_ids": torch.cat([first, labels], 1), "weights": torch.cat([0 * first, weights], 1)}
        return super().loss(model, batch | framed)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch to the sums; let the model write."""
        super().update(model, batch)
        texts = self.writer(model, batch["input_ids"], batch["attention_mask"])
        for said, truth in zip(texts, batch["target"], strict=True):
            self.counts += self.counts.new_tensor(overlap_counts(said, truth))

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        counts = reduce(self.counts.clone(), reduction="sum").tolist()
        self.counts.zero_()
        return overlap_scores(counts) | super().compute()
