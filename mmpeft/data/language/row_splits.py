"""What is done with rows that were read: bad ones are reported, the others assigned to splits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Protocol, TypeVar

from mmpeft.data.language.source_config import TextSource
from mmpeft.data.samples import listed
from mmpeft.data.splits import SPLITS


class Splittable(Protocol):
    """What splits are made by."""

    @property
    def row(self) -> int:
        """Number of the row."""

    @property
    def key(self) -> str:
        """Hash of what rows of one split must not share with another's."""

    @property
    def split(self) -> str | None:
        """The split that the row's file names, if it does."""


Kept = TypeVar("Kept", bound=Splittable)


def report_bad(path: str, config: TextSource, total: int, kept: int, bad: Sequence[tuple[str, str]]) -> str:
    """Return what is to be said of rows that were left out, each by its id and the reason.

    Raises:
        ValueError: If there are bad rows (unless ``on_bad_row`` skips them), or no others.
    """
    reasons = listed((f"{name} {reason}" for name, reason in bad), separator="; ")
    problem = f"data {path!r}: {len(bad)} of {total} rows can't be learned from: {reasons}"
    if bad and (config.on_bad_row == "error" or not kept):
        raise ValueError(f"{problem}. Correct them, or leave them out by data.on_bad_row=skip")
    if not kept:
        raise ValueError(f"data {path!r}: there are no rows")
    return f"left out by data.on_bad_row=skip: {problem}" if bad else ""


def cut_rows(kept: Sequence[Kept], config: TextSource) -> dict[str, list[Kept]]:
    """Return the rows of each split; those with the same prompt stay together.

    Splits that the data brings along are kept; a missing one is cut from the training rows by a hash of the prompt.

    Raises:
        ValueError: If nothing is left for one of them.
    """
    splits: dict[str, list[Kept]] = {name: [] for name in SPLITS}
    pool: list[Kept] = []
    for row in kept:
        split = row.split
        if split in (None, "train") or (split == "validation" and config.validation is None):
            pool.append(row)
        else:
            splits[str(split)].append(row)
    pool.sort(key=attrgetter("key"))
    groups = (group for _, group in groupby(pool, key=attrgetter("key")))
    for name, wanted in (("validation", config.validation), ("test", config.test)):
        if splits[name] or wanted is None:
            continue
        number = wanted if isinstance(wanted, int) else max(1, round(wanted * len(pool)))
        while len(splits[name]) < number and (group := next(groups, None)):
            splits[name] += group
    splits["train"] = [row for group in groups for row in group]
    if not splits["train"] or not splits["test"]:
        raise ValueError(
            f"data {config.path!r}: {len(kept)} rows are too few for validation: {config.validation}, "
            f"test: {config.test} and a training split (rows with the same prompt stay together)"
        )
    return {name: sorted(part, key=attrgetter("row")) for name, part in splits.items()}
