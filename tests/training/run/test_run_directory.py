from pathlib import Path

import pytest

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
