"""Classes as data name them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from mmpeft.data.samples import listed


def class_label(value: object) -> str | int | None:
    """Return a class's name or number; None if it is missing, which tables say by NaN.

    Raises:
        ValueError: If it is infinite, or neither a text nor a number.
    """
    if value is None or value != value:
        return None
    if isinstance(value, list | dict) or (isinstance(value, float) and math.isinf(value)):
        raise ValueError
    return int(value) if isinstance(value, int | float) and value == int(value) else str(value)


def class_labels(
    values: Iterable[object], where: str, label: Callable[[object], str | int | None] = class_label
) -> list[str | int | None]:
    """Return all labels of ``where``.

    Raises:
        ValueError: If some are no class; they are named with their rows, from 1.
    """
    labels, wrong = [], []
    for number, value in enumerate(values, 1):
        try:
            labels.append(label(value))
        except ValueError:
            wrong.append(f"{value!r} (row {number})")
    if wrong:
        raise ValueError(f"{where}: {len(wrong)} of {len(labels) + len(wrong)} labels are no class: {listed(wrong)}")
    return labels
