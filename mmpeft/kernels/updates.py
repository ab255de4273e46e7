"""Low-rank updates of a frozen weight, as fused functions take them, and their thin products."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from mmpeft.kernels.dropout import keep_mask, kept_share
from mmpeft.kernels.rows import Rows, spread, take


@dataclass(eq=False, slots=True)
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


@dataclass(eq=False, slots=True)
class Term:
    """What of an update is no tensor; its thin product has the places ``ranks`` among those of all, None: it is all."""

    scale: float
    rows: Rows | None
    ranks: slice | None

    def thin(self, products: Tensor) -> Tensor:
        """Return the rows of this term among the thin products (ranks, n) of all, or among their gradients."""
        return products if self.ranks is None else products[self.ranks]

    def part(self, x: Tensor) -> Tensor:
        """Return the columns (n, rows) of this term of an output, or of its gradient."""
        return x if self.rows is None else take(x, self.rows, -1)

    def place(self, out: Tensor) -> Tensor:
        """Return the same of a contiguous output as a view to write to; see `spread`."""
        return out if self.rows is None else spread(out, self.rows, -1)


@dataclass(eq=False, slots=True)
class Group:
    """Neighbouring updates that read the same input, dropped out by the same mask if at all; None stands for all."""

    terms: slice | None
    ranks: slice | None
    dropout: float = 0.0
    seed: int = 0

    def stacked(self, downs: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the A of this group on top of each other."""
        return joined([a.to(dtype) for a in (downs if self.terms is None else downs[self.terms])])

    def mask(self, like: Tensor, shape: torch.Size | None = None) -> Tensor | None:
        """Return which elements of an input are kept, of ``like`` or of a shape."""
        if not self.dropout:
            return None
        return keep_mask(like.shape if shape is None else shape, self.dropout, self.seed, like.device)

    def thin(self, products: Tensor) -> Tensor:
        """Return the rows of this group among the thin products (ranks, n) of all, or among their gradients."""
        return products if self.ranks is None else products[self.ranks]


@dataclass(eq=False, slots=True)
class UpdateLayout:
    """The terms, the groups that they make, and whether there is a ratio."""

    terms: list[Term]
    groups: list[Group]
    rescaled: bool


ALL = Group(None, None)


def arranged(updates: Sequence[Update]) -> tuple[UpdateLayout, list[Tensor | None]]:
    """Return the updates apart: what is no tensor, and a, b and ratio of each in turn."""
    terms: list[Term] = []
    tensors: list[Tensor | None] = []
    end, plain, rescaled = 0, True, False
    for update in updates:
        start, end = end, end + update.a.shape[0]
        scale = update.scale / kept_share(update.dropout) if update.dropout else update.scale
        terms.append(Term(scale, update.rows, slice(start, end) if len(updates) > 1 else None))
        tensors += (update.a, update.b, update.ratio)
        plain, rescaled = plain and not update.dropout, rescaled or update.ratio is not None
    return UpdateLayout(terms, [ALL] if plain else list(_groups(updates)), rescaled), tensors


def _groups(updates: Sequence[Update]) -> Iterator[Group]:
    first = rank = 0
    for (dropout, seed), same in groupby(updates, lambda update: (update.dropout, update.seed)):
        group = list(same)
        end = rank + sum(len(update.a) for update in group)
        yield Group(slice(first, first + len(group)), slice(rank, end), dropout, seed)
        first, rank = first + len(group), end


def joined(parts: list[Tensor]) -> Tensor:
    """Return the parts one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def scaled(scale: float, x: Tensor) -> Tensor:
    """Return ``scale * x``."""
    return x if scale == 1.0 else scale * x
