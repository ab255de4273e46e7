"""What a routed batch looks like when it enters a model: one row per name, or as many as ``generate`` made of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mmpeft.edits.routes import Served
from mmpeft.injection.tree import Tree


def check_batch(
    expected: int, tree: Tree, served: Served, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    """Raise a ValueError for a batch of another size than there are names, where the route is that of this context.

    transformers' ``generate`` repeats each row for its beams or returned sequences; these rows, one behind the other,
    are of one sample. They are known by their being equal when it starts, and followed from there.
    """
    if tree.table.value is not served:
        return
    tensors = [*_tensors((*args, *kwargs.values()))]
    size = len(tensors[0])
    each = size // expected
    if size == expected or (size == expected * each and each == served.each):
        return
    if size != expected * each or not all(_repeated(x, each) for x in tensors if x.ndim and len(x) == size):
        raise ValueError(f"route: {expected} names for a batch of {size}")
    served.each = each


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())


def _repeated(x: Tensor, each: int) -> bool:
    """Whether every ``each`` rows that follow each other are the same."""
    groups = x.unflatten(0, (-1, each))
    return torch.equal(groups, groups[:, :1].expand_as(groups))
