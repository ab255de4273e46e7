from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training_program import Pictures, Splits, base_weights, make_trainer, weights

from mmpeft.objectives.classification import Classification
from mmpeft.training.failures import OutOfDeviceMemoryError


class Scripted(Classification):
    """Reports given scores, one per evaluation."""

    def __init__(self, *scores: float) -> None:
        super().__init__()
        self.scores = list(scores)

    def update(self, model: nn.Module, batch: Any) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return {"accuracy": self.scores.pop(0)}


def validations(trainer: Any) -> list[dict[str, Any]]:
    return [record for record in trainer.directory.records() if record["split"] == "validation"]


def test_it_learns_and_the_base_stays_as_it_was(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=12, lr=3e-2)
    before, start = base_weights(trainer), trainer.evaluate("test")
    trainer.fit()
    assert all(torch.equal(before[name], value) for name, value in base_weights(trainer).items())
    assert trainer.evaluate("test")["accuracy"] > start["accuracy"] + 0.3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_base_survives_every_precision(tmp_path: Path, precision: str) -> None:
    trainer = make_trainer(tmp_path, precision=precision)
    before = base_weights(trainer)
    trainer.fit()
    assert all(torch.equal(before[name], value) for name, value in base_weights(trainer).items())
    losses = [record["loss"] for record in trainer.directory.records() if record["split"] == "train"]
    assert losses[-1] < losses[0]


def test_early_stopping_keeps_the_best(tmp_path: Path) -> None:
    objective = Scripted(0.3, 0.6, 0.5, 0.6, 0.9)
    trainer = make_trainer(tmp_path, epochs=9, early_stopping=2, objective=objective, batch_size=11)
    best: dict[str, Any] = {}
    keep = trainer.store.keep_best
    trainer.store.keep_best = lambda: (keep(), best.update(weights(trainer)))
    result = trainer.fit()
    assert (result.epochs, result.steps, result.best_step, result.best_score) == (4, 8, 4, 0.6)
    assert all(torch.equal(best[name], value) for name, value in weights(trainer).items())
    assert [record["accuracy"] for record in validations(trainer)] == [0.3, 0.6, 0.5, 0.6]


def test_a_smaller_loss_can_be_what_is_better(tmp_path: Path) -> None:
    monitor = {"metric": "accuracy", "mode": "min"}
    result = make_trainer(tmp_path, objective=Scripted(0.5, 0.2, 0.4), monitor=monitor, batch_size=22).fit()
    assert (result.best_step, result.best_score) == (2, 0.2)


def test_an_unknown_metric_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.monitor\.metric: no score 'acuracy' \(did you mean 'accuracy'"):
        make_trainer(tmp_path, monitor={"metric": "acuracy"}).fit()


def test_evaluations_every_few_epochs_and_at_the_end(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=5, evaluate_every=2, batch_size=22)
    trainer.fit()
    assert [record["epoch"] for record in validations(trainer)] == [2, 4, 5]


def test_max_steps_ends_within_an_epoch(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=None, max_steps=8)
    result = trainer.fit()
    assert (result.steps, result.epochs) == (8, 1)
    assert [record["step"] for record in validations(trainer)] == [6, 8]


def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ema=0.99, epochs=1)
    trainer.fit()
    assert trainer.average is not None
    assert all(torch.equal(trainer.average.values[name], value) for name, value in weights(trainer).items())
    validation = {name: validations(trainer)[0][name] for name in ("accuracy", "loss")}
    assert trainer.evaluate("val") == pytest.approx(validation)
    raw = trainer.store.resume(tmp_path / "checkpoints" / "step_6")
    assert raw.step == 6
    assert trainer.evaluate("val")["loss"] != pytest.approx(validation["loss"])


def test_the_mean_over_epochs_is_what_is_kept(tmp_path: Path) -> None:
    """Taken at the end of each epoch, before it is evaluated: of two equal weights, the mean of both epochs."""
    ends: list[dict[str, torch.Tensor]] = []
    trainer = make_trainer(tmp_path, epochs=2, average={"mean": 1.5, "std": 1}, monitor=None)
    assert trainer.average is not None
    take_in = trainer.average.after_epoch
    trainer.average.after_epoch = lambda epoch: (ends.append(weights(trainer)), take_in(epoch))[1]
    trainer.fit()
    for name, value in weights(trainer).items():
        torch.testing.assert_close(value, (ends[0][name] + ends[1][name]) / 2)


def test_without_a_monitor_the_last_weights_are_kept(tmp_path: Path) -> None:
    objective = Scripted(0.9, 0.1)
    trainer = make_trainer(tmp_path, epochs=2, objective=objective, monitor=None)
    result = trainer.fit()
    last = trainer.store.best
    assert (result.best_step, result.best_score, len(validations(trainer))) == (12, None, 2)
    assert trainer.store.resume(tmp_path / "checkpoints" / "step_12").step == 12
    assert all(torch.equal(last[name], value) for name, value in weights(trainer).items())


def test_without_a_validation_split_the_monitor_must_be_off(tmp_path: Path) -> None:
    splits = Splits(Pictures(22, 1), Pictures(0, 2), Pictures(11, 3))
    with pytest.raises(ValueError, match=r"train\.monitor: there is no validation split.*null keeps the last"):
        make_trainer(tmp_path, splits)
    trainer = make_trainer(tmp_path, splits, epochs=1, monitor=None)
    assert trainer.fit().best_step == 6
    assert validations(trainer) == []


def test_out_of_memory_is_explained(tmp_path: Path) -> None:
    class Hungry(Classification):
        def loss(self, model: nn.Module, batch: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(OutOfDeviceMemoryError, match=r"train\.batch_size=2 train\.accumulate=2 \(now 4 and 1\)"):
        make_trainer(tmp_path, objective=Hungry()).fit()


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    make_trainer(tmp_path, epochs=1).fit()
    with pytest.raises(ValueError, match="already holds a run"):
        make_trainer(tmp_path, epochs=1).fit()


def test_a_finished_run_can_be_resumed_and_lengthened(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, epochs=1)
    first.fit()
    again = make_trainer(tmp_path, epochs=1, resume="latest")
    assert again.fit().steps == 6
    assert all(torch.equal(weights(first)[name], value) for name, value in weights(again).items())
    assert make_trainer(tmp_path, epochs=2, resume="latest").fit().steps == 12
