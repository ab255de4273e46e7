"""Learning rates as the recipes of the methods' papers have them, to the step or epoch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR

from mmpeft.training.config import TrainConfig
from mmpeft.training.schedule import make_schedule, peak

DASSL = {"step_by": "epoch", "warmup": "constant", "warmup_epochs": 1, "warmup_lr": 1e-5, "decay_span": "cut_short"}


def rates(batches: int = 1, **settings: Any) -> list[float]:
    """The learning rate of every step, where an epoch has so many batches."""
    schedule = make_schedule(TrainConfig(**settings), batches)
    return [schedule(step) for step in range(schedule.total)]


def test_warmup_rises_to_the_peak_and_cosine_falls_to_zero() -> None:
    found = rates(max_steps=12, lr=2.0, warmup_steps=4)
    assert found[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert found[8] == pytest.approx(1.0)
    assert found[10] == pytest.approx(1 + math.cos(0.75 * math.pi))


def test_linear_and_constant() -> None:
    assert rates(max_steps=4, lr=1.0, schedule="linear") == [1.0, 0.75, 0.5, 0.25]
    assert rates(max_steps=4, lr=1.0, schedule="linear", min_lr=0.5) == [1.0, 0.875, 0.75, 0.625]
    assert rates(max_steps=4, lr=1.0, schedule="constant") == [1.0] * 4


def test_length_counts_windows_of_accumulated_batches() -> None:
    schedule = make_schedule(TrainConfig(epochs=3, accumulate=2, warmup_epochs=1.5), batches=5)
    assert (schedule.total, schedule.warmup) == (9, 4)
    assert make_schedule(TrainConfig(max_steps=7, warmup_steps=2), batches=5).total == 7


def test_dassl() -> None:
    """CoOp, CoCoOp, MaPLe, PromptSRC: one epoch at 1e-5, then a cosine from its peak that never gets to its end."""
    expected = [1e-5, 0.0035, 0.00316578, 0.00229078, 0.00120922]
    assert rates(epochs=5, lr=0.0035, **DASSL) == pytest.approx(expected, abs=5e-9)
    assert rates(3, epochs=5, lr=0.0035, **DASSL)[::3] == rates(epochs=5, lr=0.0035, **DASSL)
    assert all(a == b for a, b in pairwise(rates(3, epochs=5, lr=0.0035, **DASSL)[3:6]))


def test_visual_prompt_tuning() -> None:
    """lr * B / 256, a first epoch at 0, the peak at epoch 10, then a cosine to the end, by epochs."""
    recipe = {"epochs": 100, "lr": 5.0, "lr_per": 256, "step_by": "epoch", "warmup_epochs": 10, "warmup_lr": 0.0}
    found = rates(8, batch_size=64, **recipe)[::8]
    assert found[:11] == pytest.approx([1.25 * epoch / 10 for epoch in range(11)])
    assert found[55] == pytest.approx(1.25 / 2)
    assert found[99] == pytest.approx(1.25 * (1 + math.cos(math.pi * 89 / 90)) / 2)


def test_adaptformer() -> None:
    """0.1 * B / 256 with B = 1024, warm-up from 0 in 20 epochs, a half cosine to 0, by iterations."""
    recipe = {"epochs": 100, "lr": 0.1, "lr_per": 256, "warmup_epochs": 20, "warmup_lr": 0.0, "optimizer": "sgd"}
    found = rates(48, batch_size=128, accumulate=8, **recipe)
    assert len(found) == 600
    assert found[60] == pytest.approx(0.2)
    assert found[120] == 0.4
    assert found[360] == pytest.approx(0.2)
    assert found[599] == pytest.approx(0.4 * (1 + math.cos(math.pi * 479 / 480)) / 2)


@pytest.mark.parametrize(("lr", "low", "start"), [(1e-3, 1e-5, 1e-6), (5e-2, 1e-8, 1e-7)], ids=["convpass", "ssf"])
def test_timm(lr: float, low: float, start: float) -> None:
    """NOAH, Convpass, RepAdapter, SSF: timm's scheduler, whose cosine has begun below the warm-up."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    theirs = CosineLRScheduler(optimizer, t_initial=100, warmup_t=10, lr_min=low, warmup_lr_init=start)
    expected = []
    for epoch in range(100):
        theirs.step(epoch)
        expected.append(optimizer.param_groups[0]["lr"])
    recipe = {"warmup_epochs": 10, "warmup_lr": start, "min_lr": low, "step_by": "epoch", "decay_span": "from_start"}
    assert rates(epochs=100, lr=lr, **recipe) == pytest.approx(expected, rel=1e-9)


def test_clip_lora() -> None:
    """500 iterations per shot, a cosine per iteration to 1e-6."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    theirs, expected = CosineAnnealingLR(optimizer, 500, eta_min=1e-6), []
    for _ in range(500):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(max_steps=500, lr=2e-4, min_lr=1e-6) == pytest.approx(expected, rel=1e-6)


def test_the_rate_is_scaled_by_all_samples_of_a_step() -> None:
    config = TrainConfig(epochs=1, lr=0.1, lr_per=256, batch_size=32, accumulate=2)
    assert peak(config, processes=4) == pytest.approx(0.1)
    assert peak(TrainConfig(epochs=1, lr=0.1, batch_size=32), processes=4) == 0.1
