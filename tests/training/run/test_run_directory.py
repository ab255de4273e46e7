from pathlib import Path

import pytest

from mmpeft.training.run import run_directory
from mmpeft.training.run.run_directory import RunDirectory


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.claim(None)
    run.append({"step": 1})
    with pytest.raises(ValueError, match=r"already holds a run: continue it with train\.resume=latest, or choose"):
        run.claim(None)
    run.claim("latest")


def test_a_resumed_log_forgets_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append({"step": step})
    with run.log.open("a") as file:
        file.write('{"step": 4, "lo')
    run.forget_after(2)
    run.append({"step": 3, "again": True})
    assert run.records() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_one_adapter_lies_in_adapter_and_several_below_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.adapters(["main"]) == {"main": tmp_path / "adapter"}
    assert run.adapters(["a", "b"]) == {"a": tmp_path / "adapter" / "a", "b": tmp_path / "adapter" / "b"}


def test_the_log_is_json_whatever_happens(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append({"step": 1, "grad_norm": float("inf"), "split": "train"})
    assert run.log.read_text() == '{"step": 1, "grad_norm": null, "split": "train"}\n'


def test_what_a_first_save_left_that_was_cut_short_is_no_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (run.checkpoints / "step_0").mkdir(parents=True)
    (run.checkpoints / "step_0" / "tensors.safetensors").write_bytes(b"half")
    run.claim(None)


def test_nothing_is_made_where_there_is_nothing_to_resume(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "new")
    with pytest.raises(ValueError, match="'latest' finds no checkpoint"), run.claimed("latest"):
        pass
    assert not run.path.exists()


def test_a_directory_is_claimed_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "PATIENCE", 0.0)
    run = RunDirectory(tmp_path / "new")
    with (
        run.claimed(None),
        pytest.raises(ValueError, match=r"metrics\.jsonl' is being written by process"),
        run.claimed(None),
    ):
        pass
    assert not list(run.path.iterdir())
