"""Rewards against TRL's loss, and read where a row ends."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_language import llama
from torch import nn

from mmpeft.heads.reward import ScalarScorer
from mmpeft.objectives.reward import RewardModelling


def make_batch() -> dict[str, Any]:
    torch.manual_seed(0)
    ids, mask = torch.randint(3, 88, (6, 8)), torch.ones(6, 8, dtype=torch.long)
    for row, length in enumerate((8, 5, 3, 4, 7, 2)):
        mask[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask, "margin": torch.tensor([0.0, 0.5, 1.0]).double(), "id": [*"abc"]}


def test_rewards_are_read_at_the_last_token_whatever_the_padding() -> None:
    scorer, batch = ScalarScorer(llama()), make_batch()
    found = scorer(batch["input_ids"], batch["attention_mask"])
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        ids = batch["input_ids"][row : row + 1, :length]
        alone = scorer.values(ids, torch.ones_like(ids))[0, -1]
        torch.testing.assert_close(found[row], alone, rtol=1e-4, atol=1e-5)
        padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
        left = scorer(padded, (torch.arange(padded.shape[1]) >= 3).long()[None])
        torch.testing.assert_close(left[0], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("centering", [0.0, 0.01])
def test_the_loss_agrees_with_trl(centering: float) -> None:
    trl = pytest.importorskip("trl")
    from accelerate import Accelerator

    batch = make_batch()
    logits = torch.randn(6, 1)
    model: Any = nn.Module()
    model.forward = lambda *_, **__: SimpleNamespace(logits=logits)
    trainer = SimpleNamespace(
        model=model, args=SimpleNamespace(center_rewards_coefficient=centering), accelerator=Accelerator(cpu=True),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "margin")}
    expected = trl.RewardTrainer.compute_loss(trainer, model, inputs)
    objective = RewardModelling(centering)
    ours: Any = lambda ids, mask: logits[:, 0]  # noqa: E731
    loss, logs = objective.loss(ours, batch)
    torch.testing.assert_close(loss / 3, expected.to(loss))
    objective.update(ours, batch)
    scores = objective.compute()
    assert scores["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert scores["accuracy"] == pytest.approx(trainer._metrics["train"]["accuracy"][0])
    assert scores["margin"] == pytest.approx(trainer._metrics["train"]["margin"][0], rel=1e-5)
    assert float(logs["margin"]) / 3 == pytest.approx(scores["margin"], rel=1e-5)
