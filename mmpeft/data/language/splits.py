"""Splits of encoded texts as torch data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from mmpeft.data.language.batches import pad_prompts, pad_sequences
from mmpeft.data.language.encoding import CONTEXT, Encoded

Question = tuple[np.ndarray, str, int]
"""A prompt as tokens, the right answer to it, and what it is for (`pools.TASK`, ``REFUSAL``, ``BENIGN``)."""


@dataclass(frozen=True)
class Corpus:
    """Encoded rows, all in two long arrays."""

    tokens: np.ndarray
    kinds: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Encoded]) -> Corpus:
        """Put rows together."""
        ends = np.cumsum([len(row.tokens) for row in rows])
        tokens = np.concatenate([np.empty(0, np.int32), *(row.tokens for row in rows)])
        return cls(tokens, np.concatenate([np.empty(0, np.uint8), *(row.kinds for row in rows)]), ends)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return np.diff(self.ends, prepend=0).tolist()

    def __getitem__(self, row: int) -> Encoded:
        start, end = self.ends[row - 1] if row else 0, self.ends[row]
        return Encoded(self.tokens[start:end], self.kinds[start:end])


@dataclass(frozen=True)
class Style:
    """How sequences become batches."""

    fill: int
    """The token that fills shorter rows; any will do."""
    thought_weight: float
    decode: Callable[[Any], str]
    """Return tokens as text."""


class TextSplit(Dataset[dict[str, Any]]):
    """One split: dicts with ``id``, ``sequences`` (one for each role in a comparison) and what else is known of it.

    A batch of B samples with k sequences each has k x B rows, all first sequences in front: ``input_ids``, ``weights``
    and ``attention_mask``, or ``position_ids`` of packed ones; see `pad_sequences`. Samples with a ``question`` also
    give ``prompt_ids``, ``prompt_mask``, ``reference`` (texts) and ``kind`` (batch,).
    """

    def __init__(
        self,
        ids: Sequence[str],
        sequences: Callable[[int], Sequence[Encoded]],
        style: Style,
        extras: Mapping[str, Sequence[Any]] | None = None,
        question: Callable[[int], Question] | None = None,
    ) -> None:
        self.ids, self.sequences, self.style = ids, sequences, style
        self.extras, self.question = dict(extras or {}), question

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"id": self.ids[index], "sequences": self.sequences(index)}
        if self.question is not None:
            item["question"] = self.question(index)
        return item | {name: values[index] for name, values in self.extras.items()}

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return samples as one batch."""
        rows = [
            row for sequences in zip(*(sample["sequences"] for sample in samples), strict=True) for row in sequences
        ]
        others = [{n: v for n, v in sample.items() if n not in ("sequences", "question")} for sample in samples]
        batch = default_collate(others) | pad_sequences(rows, self.style.fill, self.style.thought_weight)
        if self.question is not None:
            prompts, references, kinds = zip(*(sample["question"] for sample in samples), strict=True)
            batch |= pad_prompts(prompts, self.style.fill)
            batch |= {"reference": list(references), "kind": torch.tensor(kinds)}
        return batch

    def describe(self, index: int) -> str:
        """Say what is learned of a sample, and behind what, for people."""
        return " | ".join(self._described(sequence) for sequence in self.sequences(index))

    def _described(self, sequence: Encoded) -> str:
        learned = sequence.kinds != CONTEXT
        context = self.style.decode(sequence.tokens[: int(learned.argmax())])
        said = self.style.decode(sequence.tokens[learned])
        return f"{len(learned)} tokens, {learned.sum()} learned: {_short(said)!r} after {_short(context, end=True)!r}"


def _short(text: str, end: bool = False, limit: int = 120) -> str:
    if len(text) <= limit:
        return text
    return "..." + text[-limit:] if end else text[:limit] + "..."


@dataclass(frozen=True)
class TextSplits:
    """Three splits that share no prompt."""

    train: TextSplit
    val: TextSplit
    test: TextSplit
    notes: list[str] = field(default_factory=list)
    """What is worth saying of how they were made."""
