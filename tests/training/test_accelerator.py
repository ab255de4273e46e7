from pathlib import Path

import pytest
from training_program import make_trainer

from mmpeft.training.accelerator import make_accelerator
from mmpeft.training.config import TrainConfig


def test_a_missing_tracker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmpeft.training.accelerator.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"train\.trackers: wandb not installed: pip install wandb"):
        make_accelerator(TrainConfig(epochs=1, trackers=("wandb",)), tmp_path)


def test_precisions_may_follow_each_other_in_one_process(tmp_path: Path) -> None:
    assert make_accelerator(TrainConfig(epochs=1, precision="bf16"), tmp_path).mixed_precision == "bf16"
    assert make_accelerator(TrainConfig(epochs=1), tmp_path).mixed_precision == "no"


def test_fp16_is_refused_where_it_would_do_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.precision: 'fp16' needs a GPU"):
        make_accelerator(TrainConfig(epochs=1, precision="fp16"), tmp_path)


def test_launched_processes_that_do_not_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="the launcher started 2 processes"):
        make_accelerator(TrainConfig(epochs=1), tmp_path)


def test_tensorboard_gets_what_the_log_gets(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tmp_path, epochs=1, trackers=("tensorboard",))
    trainer.fit()
    found = {}
    for file in (tmp_path / "mmpeft").rglob("events*"):
        events = EventAccumulator(str(file)).Reload()
        found |= {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    logged = [record["loss"] for record in trainer.directory.records() if record["split"] == "train"]
    assert found["train/loss"] == pytest.approx(logged)
    assert len(found["validation/accuracy"]) == 1
