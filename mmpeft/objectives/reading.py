"""Answers as parts of a context: the loss of the two ends, and the best one over all windows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mmpeft.objectives.base import Batch, Objective, at_least_single
from mmpeft.objectives.squad import exact_match, word_f1
from mmpeft.objectives.text_labels import INPUTS


@dataclass(frozen=True)
class Finding:
    """What a window says of a question."""

    asked: str
    text: str
    score: float
    """Sum of the two logits of the best span."""
    none: float
    """Sum of the two logits of the token that stands for no answer."""
    truths: tuple[str, ...]
    loss: float


class Reading(Objective):
    """Mean of the cross entropies of start and end, over the tokens at which an answer may be.

    At evaluation a window's best span has the largest ``start + end`` with at most ``max_answer_length`` tokens, and a
    question's that of all its windows; with ``unanswerable`` it has no answer where the smallest score of none over the
    windows is above that by more than ``threshold`` (Devlin et al. 2019, arXiv:1810.04805). Scores: ``f1`` and
    ``exact_match`` of SQuAD; with ``unanswerable`` also those of the two kinds of question, ``answerable_f1`` and
    ``unanswerable_accuracy``; ``loss`` (per window).
    """

    score_names: tuple[str, ...] = ("f1", "exact_match", "loss")

    def __init__(self, *, max_answer_length: int = 30, unanswerable: bool = False, threshold: float = 0.0) -> None:
        super().__init__()
        self.longest, self.unanswerable, self.threshold = max_answer_length, unanswerable, threshold
        self.seen: list[Finding] = []
        if unanswerable:
            self.score_names = (*self.score_names, "answerable_f1", "unanswerable_accuracy")

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss over windows."""
        return self._losses(*span_logits(model, batch), batch).sum(), {}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Keep what is found in each window."""
        start, end = span_logits(model, batch)
        losses = self._losses(start, end, batch).tolist()
        self.seen += self.find(start, end, batch, losses)

    def compute(self) -> dict[str, float]:
        """Return the scores, over questions."""
        seen = sorted(gather_object(self.seen), key=lambda one: one.asked)
        self.seen = []
        scored = [self._scored([*parts]) for _, parts in groupby(seen, key=lambda one: one.asked)]
        scores = {"f1": mean(f1 for f1, _, _ in scored), "exact_match": mean(exact for _, exact, _ in scored)}
        if self.unanswerable:
            scores["answerable_f1"] = mean(f1 for f1, _, has in scored if has)
            scores["unanswerable_accuracy"] = mean(exact for _, exact, has in scored if not has)
        return scores | {"loss": mean(one.loss for one in seen)}

    def find(self, start: Tensor, end: Tensor, batch: Batch, losses: list[float]) -> list[Finding]:
        """Return what each window of a batch says, by its logits (windows, tokens)."""
        findings = []
        for row, nowhere in enumerate(batch["nowhere"].tolist()):
            first, last, score = self._best(start[row], end[row], batch["allowed"][row].bool(), nowhere)
            offsets = batch["offsets"][row]
            text = batch["context"][row][offsets[first][0] : offsets[last][1]].strip()
            none = float(start[row, nowhere] + end[row, nowhere])
            findings.append(Finding(batch["asked"][row], text, score, none, tuple(batch["truths"][row]), losses[row]))
        return findings

    def answer(self, parts: list[Finding]) -> str:
        """Return the answer to a question by its windows; "" if there is none."""
        best = max(parts, key=lambda one: one.score)
        none = min(one.none for one in parts)
        return "" if self.unanswerable and none - best.score > self.threshold else best.text

    def _scored(self, parts: list[Finding]) -> tuple[float, float, bool]:
        said, truths = self.answer(parts), parts[0].truths
        return word_f1(said, truths), exact_match(said, truths), bool(truths)

    def _best(self, start: Tensor, end: Tensor, allowed: Tensor, nowhere: int) -> tuple[int, int, float]:
        """Return the first and last token of the best span that is no "nowhere", and its score."""
        inside = allowed.clone()
        inside[nowhere] = False
        pairs = start[:, None] + end[None]
        possible = (inside[:, None] & inside[None]).triu().tril(self.longest - 1)
        best = int(pairs.masked_fill(~possible, -torch.inf).argmax())
        first, last = divmod(best, len(start))
        return first, last, float(pairs[first, last])

    @staticmethod
    def _losses(start: Tensor, end: Tensor, batch: Batch) -> Tensor:
        ends = [cross_entropy(of, batch[name], reduction="none") for of, name in ((start, "start"), (end, "end"))]
        return (ends[0] + ends[1]) / 2


def span_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the logits of start and end (windows, tokens), those of tokens that are no place for an answer -inf."""
    output = model(**{name: batch[name] for name in INPUTS if name in batch})
    barred = ~batch["allowed"].bool()
    start, end = at_least_single(output.start_logits), at_least_single(output.end_logits)
    return start.masked_fill(barred, -torch.inf), end.masked_fill(barred, -torch.inf)


def mean(values: Iterable[float]) -> float:
    """Return the mean of numbers; 0 if there are none."""
    numbers = [*values]
    return sum(numbers) / max(len(numbers), 1)
