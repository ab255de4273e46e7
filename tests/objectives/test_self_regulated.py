"""PromptSRC's loss against its formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mmpeft
from mmpeft.objectives.self_regulated import SelfRegulated


@pytest.fixture
def classifier() -> mmpeft.heads.zero_shot.ZeroShotClassifier:  # type: ignore[name-defined]
    torch.manual_seed(0)
    model = mmpeft.zero_shot("tiny/clip", ["circle", "square", "star"], templates=["a photo of a {}.", "the {}."])
    mmpeft.adapt(model, mmpeft.PromptSRC(tokens=2, vision_tokens=2, layers="first:2"))
    return model


def test_it_adds_three_distances_to_the_frozen_model(classifier: mmpeft.heads.zero_shot.ZeroShotClassifier) -> None:  # type: ignore[name-defined]
    batch = {"image": torch.randn(4, 3, 32, 32), "label": torch.tensor([0, 1, 2, 1]), "id": list("abcd")}
    loss, logs = SelfRegulated(0.0, text=25, image=10, logits=1).loss(classifier, batch)
    own, images = classifier.class_embeddings(), F.normalize(classifier.joint.image(batch["image"]), dim=-1)
    scale = classifier.joint.scale()
    with torch.no_grad(), mmpeft.adapters(classifier).off():
        frozen, theirs = classifier.class_embeddings(), F.normalize(classifier.joint.image(batch["image"]), dim=-1)
    p, q = ((scale * i @ w.T).softmax(-1) for i, w in ((images, own), (theirs, frozen)))
    regulation = 25 * (own - frozen).abs().mean() + 10 * (images - theirs).abs().mean()
    regulation = regulation + (q * (q.log() - p.log())).sum() / p.numel()
    expected = -p.log()[range(4), batch["label"]].sum() + 4 * regulation
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logs["regulation"], 4 * regulation.detach(), rtol=1e-4, atol=1e-4)
    loss.backward()
    mmpeft.adapters(classifier).check_gradients()


def test_without_learned_words_there_is_no_distance_of_texts() -> None:
    torch.manual_seed(0)
    model = mmpeft.zero_shot("tiny/clip", ["circle", "square"])
    mmpeft.adapt(model, mmpeft.PromptSRC(tokens=0, vision_tokens=2, layers="first:2"))
    batch = {"image": torch.randn(2, 3, 32, 32), "label": torch.tensor([0, 1]), "id": ["a", "b"]}
    with_text, without = (SelfRegulated(0.0, text=w, image=10, logits=1).loss(model, batch)[0] for w in (25, 0))
    assert torch.equal(with_text, without)
