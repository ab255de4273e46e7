"""Low-rank updates of a frozen weight, as fused functions take them, and their thin products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mmpeft.kernels.dropout import keep_mask, kept_share
from mmpeft.kernels.rows import Rows


@dataclass(frozen=True, eq=False)
class Update:
    """``scale * B A`` with A ``a`` (rank, in) and B ``b`` (rows, rank), on all rows of a weight or on some.

    In front of it may be dropout of what A reads, with a mask drawn from ``seed``; behind it a ``ratio`` (rows) by
    which the output of these rows is multiplied, all but the bias (DoRA). Updates behind this one are not rescaled.
    """

    a: Tensor
    b: Tensor
    scale: float
    rows: Rows | None = None
    ratio: Tensor | None = None
    dropout: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Term:
    """What of an update is no tensor; its thin product has the places ``ranks`` among those of all."""

    scale: float
    rows: Rows
    ranks: slice
    dropout: float
    seed: int


@dataclass(frozen=True)
class Group:
    """Neighbouring updates that read the same input, dropped out by the same mask if at all."""

    terms: slice
    ranks: slice
    dropout: float
    seed: int

    def mask(self, like: Tensor, shape: torch.Size | None = None) -> Tensor | None:
        """Return which elements of an input are kept, of ``like`` or of a shape."""
        if not self.dropout:
            return None
        return keep_mask(like.shape if shape is None else shape, self.dropout, self.seed, like.device)


Layout = tuple[tuple[Term, ...], tuple[Group, ...]]


def arranged(updates: Sequence[Update]) -> tuple[Layout, list[Tensor | None]]:
    """Return the updates apart: what is no tensor, and a, b and ratio of each in turn."""
    terms, end = [], 0
    for update in updates:
        start, end = end, end + len(update.a)
        scale = update.scale / kept_share(update.dropout) if update.dropout else update.scale
        terms.append(Term(scale, update.rows or slice(None), slice(start, end), update.dropout, update.seed))
    tensors = [tensor for update in updates for tensor in (update.a, update.b, update.ratio)]
    return (tuple(terms), tuple(_groups(terms))), tensors


def _groups(terms: Sequence[Term]) -> Iterator[Group]:
    start = 0
    for (dropout, seed), same in groupby(terms, lambda term: (term.dropout, term.seed)):
        own = list(same)
        yield Group(slice(start, start + len(own)), slice(own[0].ranks.start, own[-1].ranks.stop), dropout, seed)
        start += len(own)


def stacked(downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return all A on top of each other."""
    return joined([a.to(dtype) for a in downs])


def joined(parts: list[Tensor]) -> Tensor:
    """Return the parts one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def scaled(scale: float, x: Tensor) -> Tensor:
    """Return ``scale * x``."""
    return x if scale == 1.0 else scale * x
