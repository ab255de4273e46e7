from math import nan

import pytest
from accelerate import Accelerator

from mmpeft.training.run.state import Progress, pack, unpack


def test_judge_counts_evaluations_since_the_best() -> None:
    progress = Progress()
    assert [progress.judge(score, "max") for score in (nan, 0.5, 0.5, nan, 0.4)] == [True, True, False, False, False]
    assert progress.stale == 3
    progress.step = 7
    assert progress.judge(0.6, "max")
    assert (progress.best, progress.best_step, progress.stale) == (0.6, 7, 0)
    assert Progress(best=0.5).judge(0.4, "min")


def test_a_run_is_not_resumed_with_other_batches() -> None:
    accelerator = Accelerator()
    state = pack(Progress(step=3), accelerator, {"train.seed": 0, "train.accumulate": 2})
    assert unpack(state, accelerator, {"train.seed": 0, "train.accumulate": 2}).step == 3
    with pytest.raises(ValueError, match=r"train\.resume: .* train\.accumulate: 1 was 2"):
        unpack(state, accelerator, {"train.seed": 0, "train.accumulate": 1})
