from __future__ import annotations

import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from torch import nn
from torch.nn.functional import cross_entropy

from mmpeft.objectives.segmentation import IGNORED, Segmentation

CLASSES = 4


def make_batch(count: int = 5, seed: int = 0) -> dict[str, object]:
    """Logits as images, masks of classes 0 to 2, a tenth of them ignored; class 3 is never true."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, CLASSES - 1, (count, 6, 7), generator=generator)
    mask[torch.rand(mask.shape, generator=generator) < 0.1] = IGNORED
    image = torch.randn(count, CLASSES, 6, 7, generator=generator)
    return {"image": image, "mask": mask, "id": [str(index) for index in range(count)]}


def flat(batch: dict[str, object]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = batch["mask"].flatten()  # type: ignore[attr-defined]
    logits = batch["image"].movedim(1, -1).flatten(0, 2)  # type: ignore[attr-defined]
    return logits[mask != IGNORED], mask[mask != IGNORED]


def test_loss_is_a_sum_over_labelled_pixels() -> None:
    batch, objective = make_batch(), Segmentation(CLASSES)
    logits, mask = flat(batch)
    loss, logs = objective.loss(nn.Identity(), batch)
    torch.testing.assert_close(loss, cross_entropy(logits, mask, reduction="sum"))
    assert objective.weight(batch) == len(mask) < batch["mask"].numel()  # type: ignore[attr-defined]
    assert logs["pixel_accuracy"] == (logits.argmax(1) == mask).sum()


def test_scores_are_those_of_the_whole_split() -> None:
    objective, batches = Segmentation(CLASSES), [make_batch(5, 0), make_batch(2, 1)]
    for _ in range(2):  # and start again
        for batch in batches:
            objective.update(nn.Identity(), batch)
        scores = objective.compute()
    logits, mask = (torch.cat(part) for part in zip(*map(flat, batches), strict=True))
    predicted = logits.argmax(1)
    assert scores["miou"] == pytest.approx(jaccard_score(mask, predicted, average="macro"))
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(mask, predicted))
    assert scores["loss"] == pytest.approx(cross_entropy(logits, mask).item(), rel=1e-5)


def test_a_class_that_never_occurs_does_not_count() -> None:
    objective, batch = Segmentation(CLASSES), make_batch()
    mask: torch.Tensor = batch["mask"]
    mask[mask == IGNORED] = 0
    batch["image"] = nn.functional.one_hot(mask, CLASSES).movedim(-1, 1).float()
    objective.update(nn.Identity(), batch)
    assert objective.compute()["miou"] == 1


def test_a_batch_without_labelled_pixels_has_no_weight_and_a_zero_loss() -> None:
    batch, objective = make_batch(), Segmentation(CLASSES)
    batch["mask"] = torch.full_like(batch["mask"], IGNORED)
    assert objective.weight(batch) == 0
    assert objective.loss(nn.Identity(), batch)[0] == 0
