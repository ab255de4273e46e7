"""Splits of the classic tasks as torch data sets: samples of different lengths, padded at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from mmpeft.data.language.batches import fill_of

Item = dict[str, Any]
"""What a sample holds: lists of numbers, numbers, and anything else."""


class TaskSplit(Dataset[Item]):
    """One split: dicts with ``id`` and what the sample holds.

    In a batch, lists that ``fills`` names are tensors (batch, longest), filled up with its numbers; numbers are tensors
    (batch,); all else is a list.
    """

    def __init__(
        self,
        ids: Sequence[str],
        items: Sequence[Item],
        fills: Mapping[str, int | float],
        describe: Callable[[Item], str],
    ) -> None:
        self.ids, self.items, self.fills, self._describe = ids, items, fills, describe

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        return {"id": self.ids[index], **self.items[index]}

    def collate(self, samples: Sequence[Item]) -> Item:
        """Return samples as one batch."""
        return {name: self._joined(name, [sample[name] for sample in samples]) for name in samples[0]}

    def describe(self, index: int) -> str:
        """Say what is learned of a sample, for people."""
        return self._describe(self.items[index])

    def _joined(self, name: str, values: Sequence[Any]) -> Any:
        if name in self.fills:
            rows = [torch.as_tensor(value) for value in values]
            return pad_sequence(rows, batch_first=True, padding_value=self.fills[name])
        return torch.tensor(values) if isinstance(values[0], int | float) else [*values]


@dataclass(frozen=True)
class TaskSplits:
    """Three splits that share nothing that is asked."""

    train: TaskSplit
    val: TaskSplit
    test: TaskSplit
    classes: tuple[str, ...] = ()
    """Names of the classes, of a task that has some."""
    notes: list[str] = field(default_factory=list)
    """What is worth saying of how they were made."""


def input_fills(tokenizer: Any) -> dict[str, int | float]:
    """Return what fills up each input of a model."""
    return {"input_ids": fill_of(tokenizer), "attention_mask": 0, "token_type_ids": 0}
