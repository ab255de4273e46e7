"""Filling and tuning a Tip-Adapter's cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mmpeft
from mmpeft.assembly.tip_cache import ALPHAS, BETAS, fill, search
from mmpeft.training.random_state import seeded


class Noisy:
    """Pictures with noise that depends on the random state, as an augmentation would."""

    ids = ("a", "b", "c", "d")

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = torch.linspace(-1, 1, 3 * 32 * 32).view(3, 32, 32) * (index + 1) / 4
        return {"image": picture + 0.3 * torch.randn(3, 32, 32), "label": index % 2, "id": self.ids[index]}


@pytest.fixture
def classifier() -> Any:
    model = mmpeft.zero_shot("tiny/clip", ["circle", "square"])
    mmpeft.adapt(model, mmpeft.TipAdapter(shots=3))
    return model


def features(model: Any, seed: int, view: int) -> Tensor:
    found = []
    for index in range(4):
        with seeded(seed, view, Noisy.ids[index]):
            found.append(model.joint.image(Noisy()[index]["image"][None])[0])
    return torch.stack(found)


@torch.no_grad()
def test_keys_are_the_normalised_mean_of_the_views(classifier: Any) -> None:
    fill(classifier, Noisy(), views=3, seed=5)
    (cache,) = classifier._modules["mmpeft"].active_edits()
    mean = torch.stack([features(classifier, 5, view) for view in range(3)]).mean(0)
    torch.testing.assert_close(cache.keys[:4], F.normalize(mean, dim=-1), rtol=1e-4, atol=1e-5)
    assert cache.values.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1], [0, 0], [0, 0]]
    assert not cache.keys[4:].any()


@torch.no_grad()
def test_the_search_finds_the_best_pair_of_the_grid(classifier: Any) -> None:
    fill(classifier, Noisy())
    search(classifier, Noisy())
    (cache,) = classifier._modules["mmpeft"].active_edits()
    images, labels = features(classifier, 0, 0), torch.tensor([0, 1, 0, 1])
    with mmpeft.adapters(classifier).off():
        plain = classifier.head(images, classifier.joint.scale())
    affinity = F.normalize(images, dim=-1) @ cache.keys.T
    best = None
    for a in range(1, ALPHAS + 1):
        for b in range(1, BETAS + 1):
            alpha, beta = 10 * a / ALPHAS, 10 * b / BETAS
            logits = plain + alpha * torch.exp(-beta * (1 - affinity)) @ cache.values
            pair = ((logits.argmax(-1) == labels).float().mean().item(), -alpha, -beta)
            best = pair if best is None else max(best, pair)
    assert best is not None
    assert (-cache.alpha.item(), -cache.beta.item()) == pytest.approx(best[1:])


def test_more_samples_than_places_is_an_error(classifier: Any) -> None:
    (cache,) = classifier._modules["mmpeft"].active_edits()
    with pytest.raises(ValueError, match="shots: a cache of 6 samples can't take 7"):
        cache.fill(torch.randn(7, 128), torch.zeros(7, dtype=torch.long))
