"""A split that yields prefix tensors in place of images, and an objective whose passes start from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.inspection.frozen_prefix import FrozenPrefix
from mmpeft.objectives.base import Batch, Objective
from mmpeft.training.loader import Samples, SeededSplit
from mmpeft.training.prefix_cache.store import PrefixStore
from mmpeft.training.sampler import Key


class CachedSplit(Samples):
    """Samples with ``prefix`` in place of ``image`` (or beside it); epoch e takes view ``e mod views``."""

    def __init__(
        self, images: SeededSplit, store: PrefixStore, others: list[dict[str, Any]], views: int, reads_image: bool
    ) -> None:
        self.images, self.store, self.others, self.views = images, store, others, views
        self.opens_images = reads_image

    def __getitem__(self, key: Key) -> tuple[dict[str, Any], bool]:
        view = key.epoch % self.views
        row = view * len(self.images.ids) + key.position
        sample = {**self.others[row], "prefix": self.store.read(row)}
        if self.opens_images:
            sample["image"] = self.images[Key(view, key.position)][0]["image"]
        return sample, key.counted


class ResumedObjective(Objective):
    """An objective whose passes start from the batch's ``prefix`` where it has one; ``like`` is a batch of images."""

    def __init__(self, objective: Objective, prefix: FrozenPrefix, like: Tensor) -> None:
        super().__init__()
        self.objective, self.prefix = objective, prefix
        self.nothing = torch.full((), float("nan"), dtype=like.dtype, device=like.device)
        self.shape = like.shape[1:]

    def weight(self, batch: Batch) -> float:
        """As the objective's own."""
        return self.objective.weight(batch)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """As the objective's own."""
        with self._resumed(batch) as batch:
            return self.objective.loss(model, batch)

    def idle(self, model: nn.Module, batch: Batch) -> None:
        """As the objective's own."""
        with self._resumed(batch) as batch:
            self.objective.idle(model, batch)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """As the objective's own."""
        with self._resumed(batch) as batch:
            self.objective.update(model, batch)

    def compute(self) -> dict[str, float]:
        """As the objective's own."""
        return self.objective.compute()

    @contextmanager
    def _resumed(self, batch: Batch) -> Iterator[Batch]:
        """Yield the batch with NaN for the images that nobody opened."""
        if "prefix" not in batch:
            yield batch
            return
        stored: Tensor = batch["prefix"]
        images = {} if self.prefix.reads_image else {"image": self.nothing.expand(len(stored), *self.shape)}
        with self.prefix.resumed(stored):
            yield {key: value for key, value in batch.items() if key != "prefix"} | images
