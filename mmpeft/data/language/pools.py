"""Rows read, encoded and assigned to splits."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.encoding import Encoded, Encoder
from mmpeft.data.language.formats import Example, read_example
from mmpeft.data.language.row_splits import report_bad
from mmpeft.data.language.rows import NESTED, BadRowError, Rows, read_rows

TASK, REFUSAL, BENIGN = 0, 1, 2
"""What a row is for: the task itself, a request to decline, or a harmless one that looks harmful."""


@dataclass(frozen=True)
class KeptRows:
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

    @property
    def split(self) -> str | None:
        """The split that the row's file names, if it does."""
        return self.pool.rows.split(self.row)

    def example(self) -> Example:
        """Read the row again."""
        return read_example(self.pool.rows[self.row], self.pool.config)


@dataclass(frozen=True)
class Pool:
    """All rows of one path."""

    rows: Rows
    config: LanguageData
    kind: int = TASK

    def read(self, encoder: Encoder) -> tuple[list[KeptRows], list[tuple[str, str]]]:
        """Return what can be learned from, and the ids of the other rows with the reasons."""
        kept, bad = [], []
        for row in range(len(self.rows)):
            try:
                example = read_example(self.rows[row], self.config)
                kept.append(self._keep(row, example, encoder))
            except BadRowError as error:
                bad.append((self.rows.id(row), str(error)))
            except RecursionError:
                bad.append((self.rows.id(row), NESTED))
            except ValueError as error:
                raise ValueError(f"{error} (found at {self.rows.id(row)})") from None
        return kept, bad

    def _keep(self, row: int, example: Example, encoder: Encoder) -> KeptRows:
        answers = [] if self.config.name == "prompts" else [encoder.encode(example)]
        if example.rejected is not None:
            answers.append(encoder.encode_other(example, example.rejected))
        key = sha256(f"{self.config.split_seed}/{example.key}".encode()).hexdigest()
        return KeptRows(self, row, key, tuple(answers), example.margin, example.label is not False, self.kind)


def read_pool(path: str, config: LanguageData, encoder: Encoder, kind: int = TASK) -> tuple[list[KeptRows], str]:
    """Return the rows of a path, and what is to be said of those that were left out.

    Raises:
        ValueError: If there are bad rows (unless ``on_bad_row`` skips them), or no others.
    """
    rows = read_rows(path, config)
    kept, bad = Pool(rows, config, kind).read(encoder)
    return kept, report_bad(path, config, len(rows), len(kept), bad)
