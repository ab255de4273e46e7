"""A run directory changes only for a run that is accepted, and for one run at a time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from training_program import make_trainer

import mmpeft
from mmpeft.training.config import RunConfig
from mmpeft.training.run import run_directory
from mmpeft.training.run.report import train_and_report


def report(run: Path, methods: Any = None, objective: Any = None, **settings: Any) -> dict[str, Any]:
    config = {"task": "vision/classify", "model": "tiny/vit", "data": {"name": "digits"}, "output": run}
    train = {"epochs": 1, "batch_size": 4} | settings
    kept = RunConfig.model_validate({**config, "adapters": {"default": {"method": "lora"}}, "train": train})
    return train_and_report(make_trainer(run, methods=methods, objective=objective, **train), kept, "model = ...")


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_what_a_run_directory_holds(tmp_path: Path) -> None:
    report(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    files = {"config.yaml", "environment.json", "metrics.jsonl", "metrics.json", "curves.png", "README.md"}
    assert names == files | {"adapter", "checkpoints"}
    report(tmp_path / "run", epochs=2, resume="latest")
    assert "epochs: 2" in (tmp_path / "run" / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 5}, r"batch_size.*: 5 was 4"),
        ({"resume": "nowhere"}, "'nowhere' is no checkpoint"),
        ({"resume": None}, "already holds a run"),
        ({"methods": [mmpeft.LoRA(rank=2, targets=["attn.v", "attn.out"]), mmpeft.LinearProbe()]}, "of other weights"),
        ({"cache": "disk", "trackers": ["tensorboard"]}, "has nothing to cache"),
    ],
)
def test_a_refused_resume_changes_nothing(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    methods = [mmpeft.LoRA(rank=2, targets=["attn.q", "attn.v"]), mmpeft.LinearProbe()]
    report(tmp_path, methods=methods)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=said):
        report(tmp_path, **({"methods": methods, "resume": "latest", "epochs": 2} | change))
    assert contents(tmp_path) == before


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    report(tmp_path)
    child = os.fork()
    if child == 0:
        with make_trainer(tmp_path, epochs=2, resume="latest").alone():
            (tmp_path / "held").touch()
            signal.pause()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"is being written by process {child} on "):
        report(tmp_path, epochs=2, resume="latest")
    assert contents(tmp_path) == before
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert report(tmp_path, epochs=2, resume="latest")["steps"] == 12


def test_of_two_new_runs_that_race_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "PATIENCE", 1.0)
    children = []
    for _ in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                report(tmp_path / "run")
                code = 0
            except ValueError as error:
                code = 3 if "being written by" in str(error) or "already holds a run" in str(error) else 1
            finally:
                os._exit(code)
    assert sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children) == [0, 3]
    assert (tmp_path / "run" / "metrics.json").exists()
