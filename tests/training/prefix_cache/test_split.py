from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training_program import make_splits

import mmpeft
from mmpeft.inspection.frozen_prefix_search import find_prefix
from mmpeft.objectives.classification import Classification
from mmpeft.training.loader import SeededSplit
from mmpeft.training.prefix_cache.split import CachedSplit, ResumedObjective
from mmpeft.training.sampler import Key


class Rows:
    """Row r is the number r."""

    def extend(self, samples: Any) -> bool:
        return True

    def write(self, values: Tensor) -> None:
        pass

    def read(self, row: int) -> Tensor:
        return torch.tensor(float(row))


@pytest.mark.parametrize("reads_image", [False, True])
def test_an_epoch_takes_its_view(reads_image: bool) -> None:
    images = SeededSplit(make_splits(noise=1.0).train, seed=0)
    others = [{"label": row % 3, "id": images.ids[row % 22]} for row in range(2 * 22)]
    split = CachedSplit(images, Rows(), others, 2, reads_image)
    assert split.opens_images == reads_image
    for epoch, position, row in ((0, 3, 3), (1, 3, 25), (4, 0, 0), (5, 21, 43)):
        sample, counted = split[Key(epoch, position, counted=bool(row))]
        assert (sample["prefix"], sample["label"], counted) == (row, row % 3, bool(row))
        if reads_image:
            assert torch.equal(sample["image"], images[Key(epoch % 2, position)][0]["image"])
        else:
            assert "image" not in sample


def test_an_objective_resumes_batches_with_a_prefix_only() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 3))
    mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("2",)))
    own = Classification()
    batch = {"image": torch.randn(5, 3, 2, 2), "label": torch.tensor([0, 1, 2, 0, 1]), "id": list("abcde")}
    prefix = find_prefix(model, lambda batch: own.loss(model, dict(batch))[0], batch)
    objective = ResumedObjective(own, prefix, batch["image"])
    kept = {key: value for key, value in batch.items() if key != "image"}
    kept["prefix"] = prefix.compute(lambda: own.loss(model, batch))
    assert objective.weight(kept) == 5
    assert torch.equal(objective.loss(model, kept)[0], own.loss(model, batch)[0])
    assert torch.equal(objective.loss(model, batch)[0], own.loss(model, batch)[0])
    scores = []
    for part in (kept, batch):
        objective.update(model, part)
        scores.append(objective.compute())
    assert scores[0] == scores[1]
