"""In-context evaluation: which of several words goes on from a prompt with k examples (Brown et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor

from mmpeft.heads.language import TokenScorer

Row = Mapping[str, Any]
"""A text (or two) with the number of its class, by the names ``text``, ``text_pair`` and ``label``."""


@dataclass(frozen=True)
class Wording:
    """How rows become a prompt: examples with their words, one after the other, then the question.

    ``prompt`` has a place for each column (``{text}``), and ends where the word follows; ``words`` are those of the
    classes, each with what separates it from the prompt.
    """

    prompt: str
    words: tuple[str, ...]
    separator: str = "\n\n"

    def question(self, row: Row, examples: Sequence[Row] = ()) -> str:
        """Return the text that a word is to follow."""
        shown = [self.prompt.format_map(own) + self.words[own["label"]] for own in examples]
        return self.separator.join([*shown, self.prompt.format_map(row)])


def draw_examples(rows: Sequence[Row], classes: int, count: int, random: Random) -> list[Row]:
    """Return ``count`` rows in random order, as many of each class as of any other, or one more.

    Raises:
        ValueError: If there are too few rows of a class.
    """
    order = random.sample(range(classes), classes)
    wanted = [count // classes + (place < count % classes) for place in range(classes)]
    found: list[Row] = []
    for label, number in zip(order, wanted, strict=True):
        own = [row for row in rows if row["label"] == label]
        if len(own) < number:
            raise ValueError(f"shots: {count} need {number} rows of each of {classes} classes, and one has {len(own)}")
        found += random.sample(own, number)
    return random.sample(found, len(found))


@torch.no_grad()
def word_scores(model: TokenScorer, tokenizer: Any, prompts: Sequence[str], words: Sequence[str]) -> Tensor:
    """Return the mean log-probability of each word's tokens behind each prompt (prompts, words).

    Raises:
        ValueError: If a prompt with a word is longer than the model's positions.
    """
    rows, starts = [], []
    for prompt in prompts:
        start = len(_tokens(tokenizer, prompt))
        for word in words:
            rows.append(_tokens(tokenizer, prompt + word))
            starts.append(min(start, len(rows[-1]) - 1))
    longest, room = max(map(len, rows)), getattr(model.backbone.config, "max_position_embeddings", None)
    if room is not None and longest > room:
        raise ValueError(f"shots: a prompt has {longest} tokens, and the model reads {room}: fewer shots")
    device = next(model.parameters()).device
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, counted = torch.zeros_like(ids), torch.zeros_like(ids)
    for place, (row, start) in enumerate(zip(rows, starts, strict=True)):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        counted[place, start : len(row)] = 1
    scores, _ = model(ids.to(device), counted.to(device), mask.to(device))
    sums = torch.zeros(len(rows), device=device).index_add(0, counted.nonzero()[:, 0].to(device), scores.float())
    return (sums / counted.sum(1).to(device)).view(len(prompts), len(words))


def calibrated(scores: Tensor, content_free: Tensor) -> Tensor:
    """Return scores less those (words,) behind a prompt that says nothing (Zhao et al. 2021, arXiv:2102.09690)."""
    return scores.log_softmax(-1) - content_free.log_softmax(-1)


@dataclass(frozen=True)
class Quiz:
    """Questions with examples of their own in front, ``batch_size`` at a time."""

    model: TokenScorer
    tokenizer: Any
    wording: Wording
    train: Sequence[Row]
    test: Sequence[Row]
    calibrate: bool = False
    batch_size: int = 16

    def accuracy(self, shots: int, seed: int) -> float:
        """Return the share of questions whose own word is the likeliest."""
        right = 0
        for start in range(0, len(self.test), self.batch_size):
            rows = self.test[start : start + self.batch_size]
            shown = [self.examples(shots, seed, start + place) for place in range(len(rows))]
            scores = self._scores([self.wording.question(row, own) for row, own in zip(rows, shown, strict=True)])
            if self.calibrate:
                empty = {"text": "N/A", "text_pair": "N/A"}
                scores = calibrated(scores, self._scores([self.wording.question(empty, own) for own in shown]))
            right += sum(int(best) == row["label"] for best, row in zip(scores.argmax(-1), rows, strict=True))
        return right / len(self.test)

    def examples(self, shots: int, seed: int, place: int) -> list[Row]:
        """Return the examples in front of a question."""
        return draw_examples(self.train, len(self.wording.words), shots, Random(f"{seed}/{place}"))

    def _scores(self, prompts: Sequence[str]) -> Tensor:
        return word_scores(self.model, self.tokenizer, prompts, self.wording.words)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text)["input_ids"]
    return found[:-1] if found and found[-1] == tokenizer.eos_token_id else found
