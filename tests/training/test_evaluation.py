from pathlib import Path

import pytest
import torch
from torch import nn
from training_program import make_splits, make_trainer

from mmpeft.objectives.classification import Classification
from mmpeft.training.config import TrainConfig
from mmpeft.training.evaluation import evaluate_split, set_training_mode


def test_scores_are_those_of_all_samples_at_once(tmp_path: Path) -> None:
    data = make_splits()
    trainer = make_trainer(tmp_path, data)
    scores = trainer.evaluate("val")
    model = trainer.model.eval()
    with torch.no_grad():
        logits = model(torch.stack([data.val[index]["image"] for index in range(len(data.val))]))
    label = torch.tensor([data.val[index]["label"] for index in range(len(data.val))])
    assert scores["accuracy"] == pytest.approx((logits.argmax(1) == label).float().mean().item())
    assert scores["loss"] == pytest.approx(nn.functional.cross_entropy(logits, label).item(), rel=1e-5)
    config = TrainConfig(epochs=1, eval_batch_size=3)
    alone = evaluate_split(model, Classification(), data, config, tmp_path, "val")
    assert alone == pytest.approx(scores)


def test_statistics_of_the_base_are_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    set_training_mode(model)
    model(torch.randn(2, 3, 8, 8) + 5)
    assert model[2].training
    assert torch.equal(model[1].running_mean, torch.zeros(4))
