from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from training_program import make_trainer, weights

from mmpeft.training.check import check_run

UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20}


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"methods": ["full_fine_tuning"]}, {"optimizer": "sgd"}])
def test_the_prediction_is_beside_what_the_step_took(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first step, which is made, has no moments in its passes yet."""
    trainer = make_trainer(tmp_path, **settings)
    check_run(trainer, str)
    out = capsys.readouterr().out
    sizes = [re.search(what, out) for what in (r"s; ([\d.]+) (\w+) of tensors", r"takes ([\d.]+) (\w+) of tensors")]
    took, predicted = (float(found[1]) * UNITS[found[2]] for found in sizes if found)
    state = sum(value.nbytes for own in trainer.optimizer.state.values() for value in own.values())
    assert took <= 1.05 * predicted and predicted <= 1.05 * (took + state)
    assert "one step: loss" in out and "(found by a pass with tensors without numbers" in out


def test_the_step_goes_as_it_would_without_the_prediction(tmp_path: Path) -> None:
    found = []
    for name in ("plain", "predicted"):
        trainer = make_trainer(tmp_path / name, dropout=0.5)
        window = trainer.first_window()
        torch.manual_seed(0)
        if name == "predicted":
            trainer.predict_step(window)
        found.append((trainer.try_step(window), weights(trainer)))
    (numbers, one), (others, other) = found
    assert numbers == others and all(torch.equal(one[name], other[name]) for name in one)
