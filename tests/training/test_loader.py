import random

import numpy as np
import pytest
import torch
from training_program import make_splits

from mmpeft.training.config import TrainConfig
from mmpeft.training.loader import Loaders
from mmpeft.training.sampler import Key


def pictures(workers: int = 0, start: int = 0, epoch: int = 0, seed: int = 0) -> dict[str, torch.Tensor]:
    config = TrainConfig(epochs=1, batch_size=4, workers=workers, seed=seed)
    loaders = Loaders(make_splits(noise=1.0), config, 0, 1)
    order = loaders.order("train")
    order.epoch, order.batch = epoch, start
    return {
        name: image
        for batch, _ in loaders.loader("train", order)
        for name, image in zip(batch["id"], batch["image"], strict=True)
    }


@pytest.mark.parametrize("other", [{"workers": 2}, {"start": 3}])
def test_augmentation_depends_on_seed_epoch_and_sample_alone(other: dict[str, int]) -> None:
    whole, part = pictures(), pictures(**other)
    assert len(part) == len(whole) - 4 * other.get("start", 0)
    assert all(torch.equal(part[name], whole[name]) for name in part)


@pytest.mark.parametrize("other", [{"epoch": 1}, {"seed": 1}])
def test_augmentation_changes_with_epoch_and_seed(other: dict[str, int]) -> None:
    whole, changed = pictures(), pictures(**other)
    assert not any(torch.equal(whole[name], changed[name]) for name in whole)


def test_the_state_of_the_generators_is_kept_once_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's takes longer than all else about a sample; each sample is drawn as if it came alone."""
    kept: list[object] = []
    get_state = np.random.get_state
    monkeypatch.setattr(np.random, "get_state", lambda: (kept.append(None), get_state())[1])
    split = Loaders(make_splits(noise=1.0), TrainConfig(epochs=1, batch_size=4), 0, 1).images("train")
    keys = [Key(0, position) for position in range(8)]
    together = split.__getitems__(keys)
    assert len(kept) == 1
    for (sample, _), key in zip(together, keys, strict=True):
        assert torch.equal(sample["image"], split[key][0]["image"])
    kept.clear()
    assert len(pictures()) == 22
    assert len(kept) == 6, "as many as there are batches"


def test_loading_leaves_the_global_generators_alone() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    pictures()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_it_knows_whether_images_are_random() -> None:
    config = TrainConfig(epochs=1)
    splits = {noise: Loaders(make_splits(noise), config, 0, 1).images("train") for noise in (0.0, 1.0)}
    assert not splits[0.0].draws()
    assert splits[1.0].draws()
