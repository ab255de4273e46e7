"""Rows of the classic tasks: read by the columns of a configuration, checked, and assigned to splits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, TypeVar

from mmpeft.data.language.row_splits import cut_rows, report_bad
from mmpeft.data.language.rows import NESTED, BadRowError, read_rows
from mmpeft.data.language.task_config import TaskData
from mmpeft.settings import nearest

One = TypeVar("One")
Other = TypeVar("Other")
Fields = dict[str, Any]
"""What a row says, by the task's own names."""
Bad = list[tuple[str, str]]
"""Ids of rows that can't be learned from, each with the reason."""


@dataclass(frozen=True)
class TaskRow:
    """A row that can be learned from."""

    id: str
    row: int
    split: str | None
    fields: Fields
    key: str = ""
    """Hash of what is asked."""


def read_task_rows(config: TaskData, check: Callable[[Fields], Fields]) -> tuple[list[TaskRow], Bad, int]:
    """Return the rows that ``check`` passes, the others with its reasons, and the number of all.

    Raises:
        ValueError: If there is nothing at ``data.path``, or nothing that is known.
    """
    rows = read_rows(config.path, config)

    def read(row: int) -> TaskRow:
        fields = check(_fields(rows[row], config))
        asked = json.dumps([config.split_seed, *(fields.get(name) for name in config.asked)], default=str)
        return TaskRow(rows.id(row), row, rows.split(row), fields, sha256(asked.encode()).hexdigest())

    kept, bad = sift(range(len(rows)), read, rows.id)
    return kept, bad, len(rows)


def sift(items: Iterable[One], read: Callable[[One], Other], name: Callable[[One], str]) -> tuple[list[Other], Bad]:
    """Return what ``read`` makes of items, and the names of those that it refuses with the reasons."""
    kept, bad = [], []
    for item in items:
        try:
            kept.append(read(item))
        except BadRowError as error:
            bad.append((name(item), str(error)))
        except RecursionError:
            bad.append((name(item), NESTED))
    return kept, bad


def recheck(rows: Sequence[TaskRow], check: Callable[[Fields], Fields]) -> tuple[list[TaskRow], Bad]:
    """Return rows with what a second check makes of their fields, and those that it refuses with the reasons."""
    return sift(rows, lambda row: replace(row, fields=check(row.fields)), lambda row: row.id)


def split_rows(
    config: TaskData, kept: Sequence[TaskRow], bad: Bad, total: int
) -> tuple[dict[str, list[TaskRow]], list[str]]:
    """Return the rows of each split, and what is to be said of those that were left out.

    Raises:
        ValueError: If there are bad rows (unless ``on_bad_row`` skips them), or a split is empty.
    """
    note = report_bad(config.path, config, total, len(kept), bad)
    return cut_rows(kept, config), [note] if note else []


def text_of(fields: Fields, name: str) -> str:
    """Return a field that must be a text with something in it.

    Raises:
        BadRowError: If it is none.
    """
    text = fields.get(name)
    if not isinstance(text, str):
        raise BadRowError(f"has {type(text).__name__} as its {name}: a text is wanted")
    if not text.strip():
        raise BadRowError(f"has an empty {name}: fill or remove it")
    return text


def _fields(row: Mapping[str, Any], config: TaskData) -> Fields:
    fields = {}
    for field, column in (config.known | config.columns).items():
        value: Any = row
        for part in [column] if column in row else column.split("."):
            if not isinstance(value, Mapping) or part not in value:
                value = None
                if field in config.optional and field not in config.columns:
                    break
                hint = nearest(column, map(str, row))
                raise BadRowError(f"has no column {column!r}{hint}: name the right one by data.columns.{field}")
            value = value[part]
        fields[field] = value
    return fields
