"""The order of the data: a function of (seed, epoch), cut into one share per process, entered at any batch."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from mmpeft.training.random_state import derive


class Key(NamedTuple):
    """One sample to fetch: its epoch, its position in the split, and whether it counts."""

    epoch: int
    position: int
    counted: bool = True


class BatchOrder(Sampler[list[Key]]):
    """Yields one process's share of each batch of ``batch_size * processes`` samples, from ``batch`` of ``epoch`` on.

    A process without a share of the last batch gets its first sample with ``counted=False``: all processes make the
    same number of passes, which collective operations need, and no sample counts twice. With ``groups``, a number for
    each sample, the samples of a batch are of one group: pictures of one shape.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        process: int = 0,
        processes: int = 1,
        groups: Sequence[int] | None = None,
    ) -> None:
        self.samples, self.size, self.seed = samples, batch_size * processes, seed
        self.drop_last, self.process, self.processes = drop_last, process, processes
        self.groups = [0] * samples if groups is None else groups
        self.epoch = self.batch = 0
        counts = Counter(self.groups).values()
        self._length = sum(count // self.size if drop_last else -(-count // self.size) for count in counts)
        if drop_last and not self._length:
            raise ValueError(
                f"train.drop_last: true leaves no batch: {samples} samples are fewer than train.batch_size: "
                f"{batch_size} x {processes} processes"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._length

    def __iter__(self) -> Iterator[list[Key]]:
        chunks, epoch = self._chunks(), self.epoch
        for chunk in chunks[self.batch :]:
            share = chunk[self.process :: self.processes]
            yield [Key(epoch, position) for position in share] or [Key(epoch, chunk[0], counted=False)]

    def _chunks(self) -> list[list[int]]:
        """Return the batches of all processes: of one group in its order, of several in an order of their own."""
        members: dict[int, list[int]] = defaultdict(list)
        for position in self._order(self.samples):
            members[self.groups[position]].append(position)
        chunks = [
            positions[start : start + self.size]
            for _, positions in sorted(members.items())
            for start in range(0, len(positions), self.size)
            if not self.drop_last or start + self.size <= len(positions)
        ]
        return [chunks[index] for index in self._order(len(chunks))] if len(members) > 1 else chunks

    def _order(self, count: int) -> list[int]:
        if self.seed is None:
            return list(range(count))
        generator = torch.Generator().manual_seed(derive(self.seed, self.epoch))
        return torch.randperm(count, generator=generator).tolist()
