"""The order of the data: a function of (seed, epoch), cut into one share per process, entered at any batch."""

from __future__ import annotations

from collections.abc import Iterator
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
    same number of passes, which collective operations need, and no sample counts twice.
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
    ) -> None:
        self.samples, self.size, self.seed = samples, batch_size * processes, seed
        self.drop_last, self.process, self.processes = drop_last, process, processes
        self.epoch = self.batch = 0
        if drop_last and samples < self.size:
            raise ValueError(
                f"train.drop_last: true leaves no batch: {samples} samples are fewer than train.batch_size: "
                f"{batch_size} x {processes} processes"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return self.samples // self.size if self.drop_last else -(-self.samples // self.size)

    def __iter__(self) -> Iterator[list[Key]]:
        order, epoch = self._order(), self.epoch
        for batch in range(self.batch, len(self)):
            chunk = order[batch * self.size : (batch + 1) * self.size]
            share = chunk[self.process :: self.processes]
            yield [Key(epoch, position) for position in share] or [Key(epoch, chunk[0], counted=False)]

    def _order(self) -> list[int]:
        if self.seed is None:
            return list(range(self.samples))
        generator = torch.Generator().manual_seed(derive(self.seed, self.epoch))
        return torch.randperm(self.samples, generator=generator).tolist()
