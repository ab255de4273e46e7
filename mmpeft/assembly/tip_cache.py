"""Filling the caches of Tip-Adapter with the training samples, and choosing their two numbers on validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from mmpeft.edits import FeatureCache
from mmpeft.handle.adapters import adapters
from mmpeft.heads.zero_shot import ZeroShotClassifier
from mmpeft.training.loader import Split
from mmpeft.training.random_state import seeded

BETAS, ALPHAS, LARGEST = 200, 20, 10.0
"""The grid of the search: how many values, evenly spaced up to ``LARGEST``."""
BATCH = 64


def caches(model: ZeroShotClassifier) -> list[FeatureCache]:
    """Return the caches of the active adapters."""
    edits = (edit for tree in adapters(model).trees.values() for edit in tree.active_edits())
    return [edit for edit in edits if isinstance(edit, FeatureCache)]


def fill(model: ZeroShotClassifier, split: Split, *, views: int = 1, seed: int = 0) -> None:
    """Take the split's samples into every active cache: the mean features of ``views`` passes, differently augmented.

    The random numbers of an augmentation depend on (seed, view, sample id) alone.
    """
    stores = caches(model)
    if stores:
        passes = [_features(model, split, view, seed) for view in range(views)]
        features, labels = torch.stack([features for features, _ in passes]).mean(0), passes[0][1]
        for cache in stores:
            cache.fill(features, labels)


@torch.no_grad()
def search(model: ZeroShotClassifier, split: Split) -> None:
    """Give each active cache the alpha and beta that are best on a split; of equals the smallest alpha, then beta."""
    for cache in caches(model):
        features, labels = _features(model, split, 0, 0)
        cache.alpha.zero_()
        logits = model.head(features, model.joint.scale())
        affinity = F.normalize(features, dim=-1) @ cache.keys.to(features).T - 1
        scores = []
        for beta in _grid(BETAS):
            votes = (beta * affinity).exp() @ cache.values.to(features)
            scores += [(_accuracy(logits + alpha * votes, labels), -alpha, -beta) for alpha in _grid(ALPHAS)]
        _, alpha, beta = max(scores)
        cache.alpha.fill_(-alpha)
        cache.beta.fill_(-beta)


def _grid(count: int) -> list[float]:
    return [LARGEST * (step + 1) / count for step in range(count)]


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(-1) == labels).float().mean().item()


@torch.no_grad()
def _features(model: ZeroShotClassifier, split: Split, view: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the image features (samples, width), not normalised, and the labels of a split."""
    device, training = next(model.parameters()).device, model.training
    model.eval()
    batches = [
        (model.joint.image(batch["image"].to(device)), batch["label"].to(device))
        for batch in _batches(split, view, seed)
    ]
    model.train(training)
    return torch.cat([features for features, _ in batches]), torch.cat([labels for _, labels in batches])


def _batches(split: Split, view: int, seed: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(split), BATCH):
        items = []
        for index in range(start, min(start + BATCH, len(split))):
            with seeded(seed, view, split.ids[index]):
                items.append(split[index])
        yield default_collate(items)
