import pytest
import torch
from torch import nn

from mmpeft.objectives.base import Objective
from mmpeft.objectives.classification import Classification


def make_batch(count: int = 6) -> dict[str, object]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(count, 4, generator=generator)
    return {"image": image, "label": torch.arange(count) % 4, "id": [str(index) for index in range(count)]}


def test_loss_is_the_sum_of_smoothed_cross_entropies() -> None:
    batch, objective = make_batch(), Classification(label_smoothing=0.2)
    loss, logs = objective.loss(nn.Identity(), batch)
    log_probabilities = batch["image"].log_softmax(1)  # type: ignore[attr-defined]
    target = nn.functional.one_hot(batch["label"], 4) * 0.8 + 0.2 / 4
    torch.testing.assert_close(loss, -(target * log_probabilities).sum())
    assert objective.weight(batch) == 6
    assert logs["accuracy"] == (log_probabilities.argmax(1) == batch["label"]).sum()


def test_scores_are_over_samples_not_batches_and_start_again() -> None:
    objective, batch = Classification(label_smoothing=0.2), make_batch()
    parts = [{name: value[part] for name, value in batch.items()} for part in (slice(4), slice(4, 6))]
    for part in parts:
        objective.update(nn.Identity(), part)
    scores = objective.compute()
    plain = nn.functional.cross_entropy(batch["image"], batch["label"])
    assert scores["loss"] == pytest.approx(plain.item())
    correct = batch["image"].argmax(1) == batch["label"]  # type: ignore[attr-defined]
    assert scores["accuracy"] == pytest.approx(correct.float().mean().item())
    objective.update(nn.Identity(), parts[1])
    assert objective.compute()["loss"] != pytest.approx(scores["loss"])


def test_half_precision_logits_are_summed_in_fp32() -> None:
    batch = make_batch()
    loss, _ = Classification().loss(nn.Identity(), {**batch, "image": batch["image"].bfloat16()})  # type: ignore[attr-defined]
    assert loss.dtype == torch.float32


def test_a_model_in_double_precision_has_a_loss_in_double_precision() -> None:
    batch = make_batch()
    batch["image"] = batch["image"].double() + 1e-9  # type: ignore[attr-defined]
    loss, _ = Classification().loss(nn.Identity(), batch)
    exact = nn.functional.cross_entropy(batch["image"], batch["label"], reduction="sum")
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, exact, rtol=1e-14, atol=0)


def test_an_objective_without_loss_says_so() -> None:
    with pytest.raises(TypeError, match="Objective has no loss"):
        Objective().loss(nn.Identity(), make_batch())
