import math

import pytest

from mmpeft.training.config import TrainConfig
from mmpeft.training.schedule import Schedule, make_schedule


def test_warmup_rises_to_the_peak_and_cosine_falls_to_zero() -> None:
    schedule = Schedule(lr=2.0, kind="cosine", warmup=4, total=12)
    assert [schedule(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert schedule(8) == pytest.approx(1.0)
    assert schedule(10) == pytest.approx(1 + math.cos(0.75 * math.pi))
    assert schedule(12) == pytest.approx(0.0)


def test_linear_and_constant() -> None:
    assert [Schedule(1.0, "linear", 0, 4)(step) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert {Schedule(1.0, "constant", 0, 4)(step) for step in range(5)} == {1.0}


def test_length_counts_windows_of_accumulated_batches() -> None:
    schedule = make_schedule(TrainConfig(epochs=3, accumulate=2, warmup_epochs=1.5), batches=5)
    assert (schedule.total, schedule.warmup) == (9, 4)
    assert make_schedule(TrainConfig(max_steps=7, warmup_steps=2), batches=5).total == 7
