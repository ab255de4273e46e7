"""Adapters that serve different samples of one batch, computed together from stacks of their weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

Stack = tuple[Tensor, ...]
Change = Callable[[Tensor, Stack], Tensor]


class BatchLayout:
    """Which of several stacked adapters serves which samples: ``groups`` of indices, in the order of the stack.

    For batched products the served samples lie in slots of equal size, each of one adapter: as many as there are on
    average, so that neither a copy of the weights per sample nor the size of the largest group is paid for. Places left
    over repeat a sample. ``aligned`` says that the batch lies like that as it is, ``whole`` that all its samples are
    served.
    """

    def __init__(self, groups: Sequence[Sequence[int]], batch: int, device: torch.device) -> None:
        self.batch, self.count, self.device = batch, len(groups), device
        self._owners = {sample: number for number, group in enumerate(groups) for sample in group}
        self.size = max(1, len(self._owners) // len(groups))
        starts = ((number, start) for number, group in enumerate(groups) for start in range(0, len(group), self.size))
        slots = [(number, groups[number][start : start + self.size]) for number, start in starts]
        self._slots = [number for number, _ in slots]
        self._members = [sample for _, group in slots for sample in (*group, *[group[0]] * (self.size - len(group)))]
        self.whole = len(self._owners) == batch
        self.aligned = self._members == [*range(batch)]

    @cached_property
    def served(self) -> Tensor:
        """The samples (served,) that have an adapter, in order."""
        return self._indices(sorted(self._owners))

    @cached_property
    def owner(self) -> Tensor:
        """The adapter (served,) of each of these."""
        return self._indices([self._owners[sample] for sample in sorted(self._owners)])

    @cached_property
    def everyone(self) -> Tensor:
        """The adapter (batch,) of each sample; behind the last one for those that have none."""
        return self._indices([self._owners.get(sample, self.count) for sample in range(self.batch)])

    @cached_property
    def _slot(self) -> Tensor:
        return self._indices(self._slots)

    @cached_property
    def _member(self) -> Tensor:
        return self._indices(self._members)

    @cached_property
    def _place(self) -> Tensor:
        slot_of = {sample: number for number, sample in enumerate(self._members)}
        return self._indices([slot_of[sample] for sample in sorted(self._owners)])

    def split(self, x: Tensor) -> Tensor:
        """Return x (rows, ...) as (batch, rows of a sample, ...): a sample may have become several rows (windows)."""
        return x.reshape(self.batch, self.each(len(x)), *x.shape[1:])

    def flat(self, x: Tensor) -> Tensor:
        """Return x (rows, ..., width) as (batch, length, width)."""
        self.each(len(x))
        return x.reshape(self.batch, -1, x.shape[-1])

    def each(self, rows: int) -> int:
        """Return how many of the rows belong to each sample."""
        if rows % self.batch or not rows:
            raise ValueError(f"route: {self.batch} names for a batch of {rows}")
        return rows // self.batch

    def in_slots(self, x: Tensor) -> Tensor:
        """Return x (batch, length, width) as (slots, samples of a slot x length, width)."""
        x = x if self.aligned else x.index_select(0, self._member)
        return x.reshape(-1, self.size * x.shape[1], x.shape[2])

    def out_of_slots(self, x: Tensor, length: int) -> Tensor:
        """Return what lies in slots as (served, length, width)."""
        x = x.reshape(-1, length, x.shape[2])
        return x if self.aligned else x.index_select(0, self._place)

    def of_slots(self, stack: Stack) -> Stack:
        """Return the weights of each slot."""
        plain = self._slots == [*range(self.count)]
        return stack if plain else tuple(part.index_select(0, self._slot) for part in stack)

    def of_samples(self, stack: Stack) -> Stack:
        """Return the weights of each sample that is served."""
        return tuple(part.index_select(0, self.owner) for part in stack)

    def rows_of(self, part: Tensor, rows: int) -> Tensor:
        """Return what samples have (batch, ...) by rows, into which they may have become."""
        each = self.each(rows)
        return part if each == 1 else part.repeat_interleave(each, 0)

    def spread(self, part: Tensor, rows: int) -> Tensor:
        """Return what adapters have (adapters, ...), for all ``rows`` of a batch whose samples are all served."""
        return self.rows_of(part.index_select(0, self.owner), rows)

    def chosen(self, x: Tensor) -> Tensor:
        """Return the served samples of x (batch, ...)."""
        return x if self.whole else x.index_select(0, self.served)

    def put(self, x: Tensor, new: Tensor) -> Tensor:
        """Return x (batch, ...) with ``new`` in the place of the served samples; it lies in memory as x does."""
        return new if self.whole else x.clone().index_copy_(0, self.served, new)

    def _indices(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.device)


def to_the_samples(layout: BatchLayout, length: int, width: int) -> bool:
    """Whether weights are copied to samples of ``length`` rows, in place of samples to the weights' slots.

    ``width`` is that of the thin product. Both move about as many bytes at half as many rows, for what comes out of
    slots moves back as well. Measured at 512 -> 512 with 64 samples of 8 adapters on one CPU thread (us, slots
    and samples): width 8, 1 row 70 and 75, 4 rows 185 and 140, 32 rows 1480 and 657; width 32, 1 row 156 and 241, 8
    rows 697 and 686, 32 rows 3196 and 2160. Where the batch lies in slots as it is, nothing moves.
    """
    return not layout.aligned and 2 * length > width


def routed(x: Tensor, stack: Stack, layout: BatchLayout, width: int, change: Change) -> Tensor:
    """Return ``change(x, weights)`` of x (batch, length, features) by each sample's own weights: (served, length, out).

    ``change`` takes (n, length, features) and a stack of n weights each.
    """
    if to_the_samples(layout, x.shape[1], width):
        return change(layout.chosen(x), layout.of_samples(stack))
    return layout.out_of_slots(change(layout.in_slots(x), layout.of_slots(stack)), x.shape[1])


def routed_low_rank(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, layout: BatchLayout, *, in_place: bool = False
) -> Tensor:
    """Return ``y + (x a_n^T) b_n`` with each sample's own n, in y's precision; samples without are left alone.

    y (rows, ..., out), x (rows, ..., in), a (n, rank, in), b (n, rank, out). With ``in_place`` the sum is made in y,
    which is contiguous or some columns of what is. Measured on one CPU thread with 64 adapters of rank 8 at a layer of
    512 x 512, which takes 314 us for 64 samples of 1 token and 9.3 ms of 32: a loop over the adapters 728 us and 11.8
    ms, the A of all in one masked product 981 us and 30 ms, batched products 360 us and 10.6 ms. With 2 adapters they
    are within 7 % of each other; so batched products it is.
    """
    flat, x = layout.flat(y), layout.flat(x.to(y.dtype))
    if layout.aligned or (layout.whole and to_the_samples(layout, x.shape[1], a.shape[1])):
        a, b = layout.of_slots((a, b)) if layout.aligned else layout.of_samples((a, b))
        hidden = torch.bmm(x.reshape(len(a), -1, x.shape[2]), a.mT)
        total = flat.reshape(len(a), -1, flat.shape[2])
        total = total.baddbmm_(hidden, b) if in_place else total.baddbmm(hidden, b)
    else:
        change = routed(x, (a, b), layout, a.shape[1], lambda z, pair: torch.bmm(torch.bmm(z, pair[0].mT), pair[1]))
        total = (flat.index_add_ if in_place else flat.index_add)(0, layout.served, change)
    return y if in_place else total.reshape(y.shape)


def routed_scale(y: Tensor, scale: Tensor, layout: BatchLayout, *, in_place: bool = False) -> Tensor:
    """Return ``y * scale_n`` for y (rows, ..., width), scale (n, width); samples without are times one: unchanged."""
    if not layout.whole:
        scale = torch.cat([scale, scale.new_ones(1, scale.shape[1])])
    parts = layout.split(y)
    factor = scale.index_select(0, layout.everyone).view(layout.batch, *[1] * (parts.ndim - 2), -1)
    if in_place:
        parts.mul_(factor)
        return y
    return (parts * factor).flatten(0, 1)


def routed_affine(y: Tensor, scale: Tensor, shift: Tensor, layout: BatchLayout, axis: int) -> Tensor:
    """Return ``shift_n + y * scale_n`` for y (rows, ...) with its channels on ``axis``, scale and shift (n, width)."""
    parts = layout.split(y)
    shape = [len(layout.owner), *[1] * (parts.ndim - 1)]
    shape[axis % y.ndim + 1] = -1
    scale, shift = (part.view(shape) for part in layout.of_samples((scale, shift)))
    return layout.put(parts, torch.addcmul(shift, layout.chosen(parts), scale)).flatten(0, 1)


def stacked_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x weight_n^T + bias_n`` for x (n, length, in), weight (n, out, in) and bias (n, out)."""
    return torch.baddbmm(bias[:, None], x, weight.mT)


def stacked_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return x (n, length, width) normalised over its width, times weight (n, width), plus bias (n, width)."""
    return torch.addcmul(bias[:, None], F.layer_norm(x, x.shape[-1:], eps=eps), weight[:, None])
