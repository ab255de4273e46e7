"""A save that ends at any file operation leaves the old checkpoint or the new one, and can be made again."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from kill_points import Ending, ended_at_each_operation, killed

from mmpeft.training.run.checkpoints import checkpoints, find_checkpoint, load_checkpoint, save_checkpoint
from mmpeft.training.run.run_directory import RunDirectory


def save(run: RunDirectory, step: int, version: float) -> None:
    groups = {"weights": {"a": torch.full((100,), version)}, "optimizer": {"b": torch.tensor(version)}}
    save_checkpoint(run.checkpoints, step, groups, {"progress": {"step": step}, "version": version})


def latest(run: RunDirectory) -> tuple[int, float]:
    """Return step and version of the newest checkpoint, of which all parts must be of one version."""
    groups, state = load_checkpoint(find_checkpoint(run.checkpoints, "latest"))
    assert torch.equal(groups["weights"]["a"], torch.full((100,), state["version"]))
    assert groups["optimizer"]["b"] == state["version"]
    return state["progress"]["step"], state["version"]


def names(run: RunDirectory) -> set[str]:
    return {str(path.relative_to(run.checkpoints)) for path in run.checkpoints.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a power cut would tell a file that was not forced to the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def check(run: RunDirectory, earlier: tuple[int, ...]) -> None:
    """Look at what an ended save of version 1 of step 5 left of version 0 of the earlier steps; save version 2."""
    if checkpoints(run.checkpoints):
        assert latest(run) in {(earlier[-1] if earlier else 5, 0.0 if earlier else 1.0), (5, 1.0)}
    else:
        assert not earlier, "the checkpoints before are gone"
        run.claim(None)
    save(run, 5, 2.0)
    assert latest(run) == (5, 2.0)
    kept = {f"step_{step}" for step in sorted({*earlier, 5})[-2:]}
    assert {path.name for path in checkpoints(run.checkpoints)} == kept
    assert len(names(run)) == 2 * len(kept), "rubbish is left"


@pytest.mark.parametrize("ending", ["kill", "error"])
@pytest.mark.parametrize("earlier", [(), (5,), (3, 4, 5)], ids=str)
def test_every_state_between_can_be_resumed(tmp_path: Path, earlier: tuple[int, ...], ending: Ending) -> None:
    run = RunDirectory(tmp_path / "run")

    def begin_again() -> None:
        shutil.rmtree(run.path, ignore_errors=True)
        for step in earlier:
            save(run, step, 0.0)

    begin_again()
    ended = []
    for number in ended_at_each_operation(lambda: save(run, 5, 1.0), ending):
        check(run, earlier)
        begin_again()
        ended.append(number)
    assert len(ended) > 12


@pytest.mark.parametrize("number", [8, 13])
def test_so_does_a_real_kill(tmp_path: Path, number: int) -> None:
    run = RunDirectory(tmp_path)
    for step in (3, 4, 5):
        save(run, step, 0.0)
    killed(lambda: save(run, 5, 1.0), number)
    check(run, (3, 4, 5))


def test_what_came_after_the_checkpoint_that_a_run_went_on_from_is_deleted(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (4, 8, 12):
        save(run, step, 0.0)
    save(run, 9, 1.0)
    assert [path.name for path in checkpoints(run.checkpoints)] == ["step_8", "step_9"]
