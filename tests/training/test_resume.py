import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_points import KilledError, Operations
from training_program import make_splits, make_trainer, weights

import mmpeft
from mmpeft.training.run.checkpoints import checkpoints
from mmpeft.training.trainer import Trainer

SETTINGS = {"epochs": 4, "dropout": 0.2, "ema": 0.9, "accumulate": 2, "clip": 1.0}
NOISE = 0.5
"""With these everything has a state: dropout, augmentation by three generators, moments, average, windows."""


def options(**changes: object) -> list[str]:
    return [f"{key}={value}" for key, value in {**SETTINGS, "noise": NOISE, "delay": 0.02, **changes}.items()]


def train(run: Path, **changes: Any) -> Trainer:
    trainer = make_trainer(run, make_splits(NOISE), **(SETTINGS | changes))
    trainer.fit()
    return trainer


def wait_for_step(process: subprocess.Popen[str], run: Path, step: int) -> None:
    log = run / "metrics.jsonl"
    while process.poll() is None and (not log.exists() or f'{{"step": {step},' not in log.read_text()):
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0]


def check_same(run: Trainer, reference: Trainer) -> None:
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(reference).items())
    assert run.directory.log.read_text() == reference.directory.log.read_text()
    paths = [trainer.directory.path / "adapter" / "adapter_model.safetensors" for trainer in (run, reference)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_killed_and_interrupted_runs_end_in_the_same_bits(tmp_path: Path, start: Any) -> None:
    """12 steps: killed somewhere, resumed, stopped by Ctrl-C within an epoch, resumed."""
    run = tmp_path / "run"
    killed = start(run, *options())
    reference = train(tmp_path / "reference")
    wait_for_step(killed, run, random.randint(1, 7))
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    interrupted = start(run, *options(resume="latest", delay=0.1, workers=1))
    wait_for_step(interrupted, run, 10)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: the data workers get it too
    output, _ = interrupted.communicate(timeout=120)
    assert interrupted.returncode == 130, output
    assert "train.resume=latest" in output
    assert checkpoints(run / "checkpoints")[-1].name in ("step_10", "step_11")

    check_same(train(run, resume="latest"), reference)


KILLS = int(os.environ.get("MMPEFT_KILLS", "3"))
"""How many of a run's file operations, drawn at random, it is killed at; a large number takes all of them."""


def test_killed_at_any_file_operation_a_run_starts_or_goes_on_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    operations = Operations(10**9, "kill")
    with operations.watched():
        reference = train(tmp_path / "reference", epochs=2)
    for number in random.sample(range(1, operations.done + 1), min(KILLS, operations.done)):
        run = tmp_path / f"killed_at_{number}"
        with Operations(number, "kill").watched(), suppress(KilledError):
            train(run, epochs=2)
        resume = "latest" if checkpoints(run / "checkpoints") else None
        check_same(train(run, epochs=2, resume=resume), reference)
        shutil.rmtree(run)


def test_a_mean_over_epochs_and_a_schedule_by_epochs_resume_in_the_same_bits(tmp_path: Path) -> None:
    warmup = {"warmup": "constant", "warmup_epochs": 1, "warmup_steps": 0, "warmup_lr": 1e-5}
    schedule = {"step_by": "epoch", "decay_span": "cut_short", "optimizer": "sgd", "decayed": "all"}
    recipe = warmup | schedule | {"ema": None, "average": {"mean": 2, "std": 1}, "monitor": None}
    reference = train(tmp_path / "reference", **recipe)
    half = train(tmp_path / "run", **recipe)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_12")
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == "step_9"
    check_same(train(tmp_path / "run", **recipe, resume="latest"), reference)
    assert half.average is not None


def test_lora_fa_resumes_in_the_same_bits(tmp_path: Path) -> None:
    recipe = {"methods": [mmpeft.LoRAFA(rank=2), mmpeft.LinearProbe()], "optimizer": "lora_fa"}
    reference = train(tmp_path / "reference", **recipe)
    train(tmp_path / "run", **recipe)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_12")
    resumed = train(tmp_path / "run", **recipe, resume="latest")
    check_same(resumed, reference)
    states = [resumed.optimizer.state[parameter] for parameter in resumed.adapters.parameters()]
    assert sum("projection" in state for state in states) == 4


@pytest.mark.parametrize("setting", ["batch_size=5", "accumulate=1"])
def test_another_place_in_the_data_is_refused(tmp_path: Path, setting: str) -> None:
    make_trainer(tmp_path, epochs=1, accumulate=2).fit()
    key, value = setting.split("=")
    with pytest.raises(ValueError, match=rf"train\.{key}.*: {value} was"):
        make_trainer(tmp_path, resume="latest", **{"accumulate": 2, key: int(value)}).fit()
