"""The cache of the frozen prefix: decided on, filled once before training, and read in every epoch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from mmpeft.inspection.frozen_prefix import FrozenPrefix, NoPrefixError
from mmpeft.inspection.frozen_prefix_search import find_prefix
from mmpeft.objectives.base import Batch, Objective
from mmpeft.training.evaluation import set_training_mode
from mmpeft.training.loader import Loaders, SeededSplit, SplitName, listed
from mmpeft.training.memory import available_bytes
from mmpeft.training.prefix_cache.fingerprint import fingerprint
from mmpeft.training.prefix_cache.split import CachedSplit, ResumedObjective
from mmpeft.training.prefix_cache.store import DiskStore, MemoryStore, PrefixStore
from mmpeft.training.random_state import seeded
from mmpeft.training.sampler import Key

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig

SHARE = 4
"""``auto`` takes at most one part in four of the free memory."""
GIB = 2**30


@dataclass(frozen=True)
class Cached:
    """What training goes on with: an objective and loaders that start from the cache, and what the run reports."""

    objective: Objective
    loaders: Loaders
    summary: dict[str, Any]


@dataclass(frozen=True)
class PrefixCache:
    """Caches the frozen prefix of one training; ``epochs`` is how often it will see each sample."""

    model: nn.Module
    objective: Objective
    loaders: Loaders
    config: TrainConfig
    accelerator: Accelerator
    output: Path
    epochs: int
    say: Callable[[str], None]

    def prepare(self) -> Cached:
        """Fill the cache if there is to be one; where ``store`` insists on one that can't be, raise a ValueError."""
        store = self.config.cache.store
        if store == "off":
            return Cached(self.objective, self.loaders, {"store": "off", "reason": "train.cache.store: off"})
        with seeded(self.config.seed, "prefix"):
            try:
                views = self._views()
                prefix, batch = self._search()
                size = self._bytes(prefix, views, batch)
                self._afford(size)
            except NoPrefixError as reason:
                if store != "auto":
                    raise ValueError(f"train.cache.store: {store!r} has nothing to cache: {reason}") from None
                self.say(f"prefix cache: off, for {reason}")
                return Cached(self.objective, self.loaders, {"store": "off", "reason": str(reason)})
            return self._fill_all(prefix, views, size, batch)

    def _views(self) -> int:
        """Return the number of views of each training image; raise where there is no number that pays."""
        if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and self.accelerator.num_processes > 1:
            raise NoPrefixError("the model is sharded (FSDP)")
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise NoPrefixError("nothing is trained")
        asked = self.config.cache.views
        views = asked or 1
        if not self.loaders.images("train").draws():
            views = 1
        elif asked is None:
            raise NoPrefixError("the training images are augmented at random: train.cache.views=N keeps N of each")
        if self.config.cache.store == "auto" and self.epochs <= views:
            raise NoPrefixError(f"no view of an image comes twice in {self.epochs} epochs (train.cache.views: {views})")
        return views

    def _search(self) -> tuple[FrozenPrefix, Batch]:
        set_training_mode(self.model)
        dataset = self.loaders.images("train")
        batch = self._collated([dataset[Key(0, row)][0] for row in range(min(3, len(dataset.ids)))])
        return find_prefix(self.model, lambda given: self._loss(dict(given)), batch), batch

    def _loss(self, batch: Batch) -> Tensor:
        with self.accelerator.autocast():
            return self.objective.loss(self.model, batch)[0]

    def _bytes(self, prefix: FrozenPrefix, views: int, batch: Batch) -> int:
        """Return what all samples take: the tensors at the landing, and what else a sample has (masks)."""
        others = [value for key, value in batch.items() if key != "image" and isinstance(value, Tensor)]
        rows = views * len(self.loaders.images("train").ids) + len(self.loaders.images("val").ids)
        return rows * (prefix.sample_bytes + sum(value.nbytes // len(value) for value in others))

    def _afford(self, needed: int) -> None:
        free = available_bytes() // self.accelerator.num_processes
        if self.config.cache.store == "auto" and needed > free // SHARE:
            raise NoPrefixError(
                f"it would take {needed / GIB:.2f} GiB, more than a quarter of the free memory, {free / GIB:.2f} GiB: "
                "train.cache=disk keeps it on the disk, train.cache=memory insists"
            )

    def _fill_all(self, prefix: FrozenPrefix, views: int, size: int, batch: Batch) -> Cached:
        store = "memory" if self.config.cache.store == "auto" else self.config.cache.store
        kept = {"store": store, "place": prefix.place, "views": views, "bytes": size}
        self.say(f"prefix cache: {prefix.place} of every image, {size / 2**20:.1f} MiB in {store}, views: {views}")
        with self._one_after_another(store):
            train, val = self._fill(prefix, "train", views), self._fill(prefix, "val", 1)
        objective = ResumedObjective(self.objective, prefix, batch["image"])
        return Cached(objective, replace(self.loaders, cached={"train": train, "val": val}), kept)

    def _one_after_another(self, store: str) -> AbstractContextManager[None]:
        """Let the first process fill the disk for the others."""
        return self.accelerator.main_process_first() if store == "disk" else nullcontext()

    def _fill(self, prefix: FrozenPrefix, name: SplitName, views: int) -> CachedSplit:
        """Go through a split once per view, in its order: a resumed run gets the same numbers."""
        set_training_mode(self.model) if name == "train" else self.model.eval()
        dataset = self.loaders.images(name)
        store = self._store(prefix, name, views * len(dataset.ids))
        others: list[dict[str, Any]] = []
        for samples in self._batches(dataset, views):
            if not store.extend(samples):
                store.write(self._compute(prefix, samples))
            others += map(_without_image, samples)
        return CachedSplit(dataset, store, others, views, prefix.reads_image)

    def _compute(self, prefix: FrozenPrefix, samples: list[dict[str, Any]]) -> Tensor:
        batch = self._collated(samples)
        return prefix.compute(lambda: self._loss(batch)).cpu()

    def _collated(self, samples: list[dict[str, Any]]) -> Batch:
        return send_to_device({**default_collate(samples), "counted": True}, self.accelerator.device)

    def _store(self, prefix: FrozenPrefix, name: SplitName, rows: int) -> PrefixStore:
        if self.config.cache.store != "disk":
            return MemoryStore(rows, prefix)
        settings = (self.config.precision, self.accelerator.device.type, "training" if name == "train" else "eval")
        folder = self.config.cache.folder or self.output / "prefix_cache"
        return DiskStore(folder / fingerprint(self.model, prefix, *settings))

    def _batches(self, dataset: SeededSplit, views: int) -> Iterator[list[dict[str, Any]]]:
        rows = [Key(view, row) for view in range(views) for row in range(len(dataset.ids))]
        size = self.config.eval_batch_size or self.config.batch_size
        order = [rows[start : start + size] for start in range(0, len(rows), size)]
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_sampler=order, num_workers=self.config.workers, collate_fn=listed
        )
        for samples in loader:
            yield [sample for sample, _ in samples]


def _without_image(sample: dict[str, Any]) -> dict[str, Any]:
    """Return what else a sample has, tensors as copies: one from a data worker would keep a file open."""
    others = {key: value for key, value in sample.items() if key != "image"}
    return {key: value.clone() if isinstance(value, Tensor) else value for key, value in others.items()}
