"""Where rows of texts come from and how they are split: what all tasks of language models share. Needs no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from mmpeft.data.config import Count, FilePath, Share
from mmpeft.settings import Settings


class TextSource(Settings):
    """Rows of one data set and its splits."""

    path: FilePath
    """A .jsonl, .json, .csv, .parquet or (text) .txt file, a folder of these, where names such as ``train.jsonl`` and
    ``test.jsonl`` say the split, a data set on the hub (``OWNER/NAME``, ``OWNER/NAME@REVISION``), or a generated one
    for `tiny/llm` (``tiny_tasks``, ``tiny_preferences`` ...)."""
    generated: tuple[PositiveInt, PositiveInt, PositiveInt] = (2000, 200, 400)
    """Rows of a generated data set for training, validation and test."""
    subset: str | None = None
    """Configuration of a data set on the hub that has several."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Columns by the format's own names: ``{prompt: question, completion: answer}``."""
    max_length: PositiveInt = 1024
    """Tokens of a sample; what is longer is cut at the end."""
    validation: Count | Share | None = 0.05
    """Rows, or share of the rows, for choosing the model; unused if the data has such a split. null trains on these
    rows too; ``train.monitor`` must then be null."""
    test: Count | Share = 0.05
    """Rows, or share of the rows, for the report; unused if the data has such a split."""
    split_seed: NonNegativeInt = 0
    """Which rows are cut off for validation and test; rows with the same prompt stay together."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Whether a row that can't be learned from stops everything, or is left out, counted and reported."""

    @property
    def title(self) -> str:
        """What the data is called in reports."""
        return self.path

    @property
    def documents(self) -> bool:
        """Whether a row may be a text file as a whole."""
        return False
