"""The rows of a fused weight that make one projection: a slice, or the same slice of each head's own part."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interleaved:
    """The rows ``part`` of each of ``groups`` equal parts: GPT-NeoX fuses q, k and v head by head."""

    groups: int
    part: slice

    def __str__(self) -> str:
        return f"{self.part.start}:{self.part.stop} of {self.groups} parts"


Rows = slice | Interleaved


def indices(rows: Rows, count: int) -> list[int]:
    """Return the places of these rows among the ``count`` of a whole weight."""
    return take(torch.arange(count), rows, 0).tolist()


def take(x: Tensor, rows: Rows, axis: int) -> Tensor:
    """Return these rows of a tensor, which lie on ``axis`` (0 of a weight, -1 of features)."""
    if isinstance(rows, slice):
        start, stop, _ = rows.indices(x.shape[axis])
        return x.narrow(axis, start, stop - start)
    axis = axis % x.ndim
    return take(x.unflatten(axis, (rows.groups, -1)), rows.part, axis + 1).flatten(axis, axis + 1)


def spread(x: Tensor, rows: Rows, axis: int) -> Tensor:
    """Return a view of these rows of a contiguous tensor, to write to; of interleaved ones one more axis, by group."""
    if isinstance(rows, slice):
        return take(x, rows, axis)
    axis = axis % x.ndim
    return take(x.unflatten(axis, (rows.groups, -1)), rows.part, axis + 1)


def overlap(one: Rows | None, other: Rows | None) -> bool:
    """Whether two choices of rows of one weight may have a row in common; None is all of them."""
    if isinstance(one, Interleaved) and isinstance(other, Interleaved) and one.groups == other.groups:
        one, other = one.part, other.part
    if not (isinstance(one, slice) and isinstance(other, slice)):
        return True
    return one.start < other.stop and other.start < one.stop


def put(x: Tensor, rows: Rows, new: Tensor, axis: int) -> Tensor:
    """Return a tensor with ``new`` in the place of these rows."""
    axis = axis % x.ndim
    if isinstance(rows, slice):
        start, stop, _ = rows.indices(x.shape[axis])
        return torch.cat([take(x, slice(0, start), axis), new, take(x, slice(stop, None), axis)], axis)
    parts, news = (tensor.unflatten(axis, (rows.groups, -1)) for tensor in (x, new))
    return put(parts, rows.part, news, axis + 1).flatten(axis, axis + 1)
