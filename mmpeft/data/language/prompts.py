"""Prompts that a model is to answer, for stages that learn from what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import Dataset, default_collate

from mmpeft.data.language.batches import fill_of, pad_prompts
from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.encoding import Encoder
from mmpeft.data.language.pools import TASK, KeptRows, read_pool
from mmpeft.data.language.row_splits import cut_rows
from mmpeft.data.language.splits import Question


class PromptSplit(Dataset[dict[str, Any]]):
    """One split: dicts with ``id``, ``prompt`` (its tokens) and ``row`` (all columns, for a reward by a rule).

    A batch has ``prompt_ids`` and ``prompt_mask`` (batch, length), filled at the front, and ``rows``.
    """

    def __init__(self, kept: Sequence[KeptRows], encoder: Encoder, fill: int) -> None:
        self.kept, self.encoder, self.fill = kept, encoder, fill
        self.ids = [row.id for row in kept]

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.kept[index]
        prompt = self.encoder.encode_prompt(row.example())[-self.encoder.config.max_length :]
        return {"id": row.id, "prompt": prompt, "row": row.pool.rows[row.row]}

    def question(self, index: int) -> Question:
        """Return a prompt as tokens; there is no right answer to it."""
        return self[index]["prompt"], "", TASK

    def collate(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return samples as one batch."""
        ids = default_collate([sample["id"] for sample in samples])
        rows = [sample["row"] for sample in samples]
        return {"id": ids, "rows": rows, **pad_prompts([sample["prompt"] for sample in samples], self.fill)}

    def describe(self, index: int) -> str:
        """Say what is asked, for people."""
        return f"asks {self.encoder.tokenizer.decode(self[index]['prompt'])!r}"


@dataclass(frozen=True)
class PromptSplits:
    """Three splits that share no prompt."""

    train: PromptSplit
    val: PromptSplit
    test: PromptSplit
    notes: list[str] = field(default_factory=list)
    """What is worth saying of how they were made."""


def load_prompts(config: LanguageData, tokenizer: Any) -> PromptSplits:
    """Read and split prompts.

    Raises:
        ValueError: For anything wrong with the data or the tokenizer: rows are named, and how many there are.
    """
    if config.name != "prompts":
        raise ValueError(f"data.name: {config.name!r}: this task answers prompts by itself: prompts")
    encoder = Encoder(tokenizer, config)
    kept, note = read_pool(config.path, config, encoder)
    train, val, test = (PromptSplit(part, encoder, fill_of(tokenizer)) for part in cut_rows(kept, config).values())
    return PromptSplits(train, val, test, [note] if note else [])
