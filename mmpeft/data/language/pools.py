"""Rows read, encoded and assigned to splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby

from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.encoding import Encoded, Encoder
from mmpeft.data.language.formats import Example, read_example
from mmpeft.data.language.rows import BadRowError, Rows, read_rows
from mmpeft.data.samples import listed
from mmpeft.data.splits import SPLITS

TASK, REFUSAL, BENIGN = 0, 1, 2
"""What a row is for: the task itself, a request to decline, or a harmless one that looks harmful."""


@dataclass(frozen=True)
class Kept:
    """A row that can be learned from."""

    pool: Pool
    row: int
    key: str
    """Hash of its prompt."""
    sequences: tuple[Encoded, ...]
    """Its answer, or of a preference the chosen and the rejected one."""
    margin: float = 0.0
    label: bool = True
    kind: int = TASK

    @property
    def id(self) -> str:
        """File and number of the row."""
        return self.pool.rows.id(self.row)

    def example(self) -> Example:
        """Read the row again."""
        return read_example(self.pool.rows[self.row], self.pool.config)


@dataclass(frozen=True)
class Pool:
    """All rows of one path."""

    rows: Rows
    config: LanguageData
    kind: int = TASK

    def read(self, encoder: Encoder) -> tuple[list[Kept], list[tuple[str, str]]]:
        """Return what can be learned from, and the ids of the other rows with the reasons."""
        kept, bad = [], []
        for row in range(len(self.rows)):
            try:
                example = read_example(self.rows[row], self.config)
                kept.append(self._keep(row, example, encoder))
            except BadRowError as error:
                bad.append((self.rows.id(row), str(error)))
            except ValueError as error:
                raise ValueError(f"{error} (found at {self.rows.id(row)})") from None
        return kept, bad

    def _keep(self, row: int, example: Example, encoder: Encoder) -> Kept:
        answers = [] if self.config.name == "prompts" else [encoder.encode(example)]
        if example.rejected is not None:
            answers.append(encoder.encode_other(example, example.rejected))
        key = sha256(f"{self.config.split_seed}/{example.key}".encode()).hexdigest()
        return Kept(self, row, key, tuple(answers), example.margin, example.label is not False, self.kind)


def read_pool(path: str, config: LanguageData, encoder: Encoder, kind: int = TASK) -> tuple[list[Kept], str]:
    """Return the rows of a path, and what is to be said of those that were left out.

    Raises:
        ValueError: If there are bad rows (unless ``on_bad_row`` skips them), or no others.
    """
    rows = read_rows(path, config)
    kept, bad = Pool(rows, config, kind).read(encoder)
    found = listed((f"{name} {reason}" for name, reason in bad), separator="; ")
    problem = f"data {path!r}: {len(bad)} of {len(rows)} rows can't be learned from: {found}"
    if bad and (config.on_bad_row == "error" or not kept):
        raise ValueError(f"{problem}. Correct them, or leave them out by data.on_bad_row=skip")
    if not kept:
        raise ValueError(f"data {path!r}: there are no rows")
    return kept, f"left out by data.on_bad_row=skip: {problem}" if bad else ""


def cut_rows(kept: Sequence[Kept], config: LanguageData) -> dict[str, list[Kept]]:
    """Return the rows of each split; those with the same prompt stay together.

    Splits that the data brings along are kept; a missing one is cut from the training rows by a hash of the prompt.

    Raises:
        ValueError: If nothing is left for one of them.
    """
    splits: dict[str, list[Kept]] = {name: [] for name in SPLITS}
    pool: list[Kept] = []
    for own in kept:
        split = own.pool.rows.split(own.row)
        if split in (None, "train") or (split == "validation" and config.validation is None):
            pool.append(own)
        else:
            splits[str(split)].append(own)
    groups = [[*group] for _, group in groupby(sorted(pool, key=lambda own: own.key), key=lambda own: own.key)]
    for name, wanted in (("validation", config.validation), ("test", config.test)):
        if splits[name] or wanted is None:
            continue
        number = wanted if isinstance(wanted, int) else max(1, round(wanted * len(pool)))
        while len(splits[name]) < number and groups:
            splits[name] += groups.pop(0)
    splits["train"] = [own for group in groups for own in group]
    if not splits["train"] or not splits["test"]:
        raise ValueError(
            f"data {config.path!r}: {len(kept)} rows are too few for validation: {config.validation}, "
            f"test: {config.test} and a training split (rows with the same prompt stay together)"
        )
    return {name: sorted(part, key=lambda own: own.row) for name, part in splits.items()}
