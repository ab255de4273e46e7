"""Batches from a split: in the sampler's order, each sample augmented by the same random numbers in every run."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from mmpeft.objectives.base import Batch
from mmpeft.training.random_state import capture, reseed, seeded, undone
from mmpeft.training.sampler import BatchOrder, Key

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig

Loaded = tuple[Batch, bool]
"""A batch, and whether it counts."""


class Split(Protocol):
    """Samples by index: dicts with the sample's ``id``, a string, and what the objective reads."""

    @property
    def ids(self) -> Sequence[str]:
        """The samples' ids, in order."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Samples(Dataset[tuple[dict[str, Any], bool]]):
    """Samples by key, each with whether it counts."""

    opens_images = True
    """Whether fetching one is work for other processes."""

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Return samples as one batch."""
        batch: Batch = default_collate(samples)
        return batch


class SeededSplit(Samples):
    """Fetches each sample under random numbers that depend on (seed, epoch, sample id) alone."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split, self.ids, self.seed = split, split.ids, seed

    def __getitem__(self, key: Key) -> tuple[dict[str, Any], bool]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[tuple[dict[str, Any], bool]]:
        """Return the samples of a batch, as torch's loaders ask for them."""
        with undone():
            return [self._drawn(key) for key in keys]

    def _drawn(self, key: Key) -> tuple[dict[str, Any], bool]:
        reseed(self.seed, key.epoch, self.ids[key.position])
        return self.split[key.position], key.counted

    def collate(self, samples: list[dict[str, Any]]) -> Batch:
        """Return samples as one batch, in the split's own way if it has one."""
        collate: Callable[[list[dict[str, Any]]], Batch] = getattr(self.split, "collate", super().collate)
        return collate(samples)

    def draws(self) -> bool:
        """Tell whether fetching a sample draws random numbers, as augmentation does."""
        with seeded(self.seed, 0, self.ids[0]):
            before = capture()
            self.split[0]
            return capture() != before


SplitName = Literal["train", "val", "test"]


class Splits(Protocol):
    """The three splits of a data set, and the names of its classes."""

    @property
    def train(self) -> Split:
        """Samples to learn from."""

    @property
    def val(self) -> Split:
        """Samples that select the weights."""

    @property
    def test(self) -> Split:
        """Samples for the final scores."""


@dataclass(frozen=True)
class Loaders:
    """Makes the batches of each split for one of several processes."""

    data: Splits
    config: TrainConfig
    process: int
    processes: int
    cached: Mapping[SplitName, Samples] = field(default_factory=dict)
    """Splits that take the place of the data's own."""

    def images(self, name: SplitName) -> SeededSplit:
        """Return a split of the data, whatever is cached of it."""
        return SeededSplit(getattr(self.data, name), self.config.seed)

    def order(self, name: SplitName) -> BatchOrder:
        """Return the order of a split: shuffled for training, as it comes otherwise."""
        config, training = self.config, name == "train"
        return BatchOrder(
            len(split := getattr(self.data, name)),
            config.batch_size if training else config.eval_batch_size or config.batch_size,
            seed=config.seed if training else None,
            drop_last=config.drop_last and training,
            process=self.process,
            processes=self.processes,
            groups=getattr(split, "groups", None),
        )

    def loader(self, name: SplitName, order: BatchOrder | None = None) -> DataLoader[Loaded]:
        """Return collated batches of a split; set ``order.epoch`` and ``order.batch`` before iterating over them.

        The loader has a generator of its own: otherwise each new iterator would draw from the global one, and a run
        resumed in the middle of an epoch would see other dropout masks.
        """
        samples = self.cached.get(name, self.images(name))
        workers = self.config.workers if samples.opens_images else 0
        return DataLoader(
            samples,
            batch_sampler=order or self.order(name),
            num_workers=workers,
            persistent_workers=workers > 0 and order is not None,
            pin_memory=torch.cuda.is_available(),
            collate_fn=partial(_collate, samples.collate),
            generator=torch.Generator(),
            worker_init_fn=_ignore_interrupts,
        )


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C to the trainer, which still wants the batches of its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def listed(samples: list[Any]) -> list[Any]:
    """Return the samples of a batch as they are."""
    return samples


def _collate(collate: Callable[[list[Any]], Batch], samples: list[tuple[dict[str, Any], bool]]) -> Loaded:
    batch, counted = collate([sample for sample, _ in samples]), samples[0][1]
    return {**batch, "counted": counted}, counted
