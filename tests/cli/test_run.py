"""``train``, ``check`` and ``eval`` hand a typed configuration to the task and turn what happens into exit codes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from mmpeft.cli import main

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("count")


def test_train_runs_the_task_with_its_own_options(capsys: Capture) -> None:
    assert main(["train", "count.yaml", "limit=5", "train.lr=3e-4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run 5 0.0003 runs/count"
    assert lines[-2].split() == ["accuracy", "0.5000"]
    assert lines[-1] == "run directory: runs/count"


def test_train_passes_the_exit_code_on() -> None:
    assert main(["train", "count.yaml", "train.seed=7"]) == 7


def test_ctrl_c_is_130() -> None:
    assert main(["train", "count.yaml", "train.seed=13"]) == 130


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train", "count.yaml", "train.seed=14"])


def test_a_mistake_is_a_message_and_a_traceback_only_with_debug(capsys: Capture) -> None:
    assert main(["train", "count.yaml", "train.seed=15"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "error: output: [bold] 'x' already holds a run\n"
    assert captured.out == ""
    with pytest.raises(ValueError, match="already holds"):
        main(["train", "count.yaml", "train.seed=15", "--debug"])


def test_every_problem_of_a_configuration_at_once(capsys: Capture) -> None:
    overrides = ["limt=5", "adapters.main.rnk=3", "train.optimizer=adam", "data.name=digit", "train.lr=fast"]
    assert main(["train", "count.yaml", *overrides]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: count.yaml: 5 problems",
        "  adapters.main.rnk (override): unknown key (did you mean 'rank'?), got 3",
        "  data.name (override): no such option (did you mean 'digits'?), got 'digit'",
        "  train.lr (override): should be a valid number, unable to parse string as a number, got 'fast'",
        "  train.optimizer (override): no such option (did you mean 'adamw' or 'adamw8bit'?), got 'adam'",
        "  limt (override): unknown key (did you mean 'limit'?), got 5",
    ]


def test_unknown_names(capsys: Capture) -> None:
    assert main(["train", "count.yaml", "task=vision/clasify", "limit=4", "train.lr=-1"]) == 2
    error = capsys.readouterr().err
    assert "2 problems" in error
    assert "task (override): no task 'vision/clasify'" in error
    assert "did you mean 'vision/classify'" in error
    assert "train.lr (override): should be greater than 0, got -1" in error
    assert main(["train", "count.yaml", "adapters.main=loar"]) == 2
    assert "adapters.main (override): method: unknown 'loar' (did you mean 'lora'" in capsys.readouterr().err
    assert main(["train", "vision/lora_digit"]) == 2
    assert "did you mean 'vision/lora_digits'" in capsys.readouterr().err


def test_a_missing_task_is_one_of_all_problems(capsys: Capture) -> None:
    Path("empty.yaml").write_text("model: tiny/vit\n")
    assert main(["train", "empty.yaml"]) == 2
    missing = [line.split(" ")[2] for line in capsys.readouterr().err.splitlines()[1:]]
    assert missing == ["task", "adapters", "data", "train"]


def test_check(capsys: Capture) -> None:
    assert main(["check", "count.yaml"]) == 0
    assert capsys.readouterr().out == "check 3\n"


def test_eval_reads_the_run_directory(capsys: Capture) -> None:
    assert main(["eval", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    run = Path("moved")
    run.mkdir()
    run.joinpath("config.yaml").write_text(Path("count.yaml").read_text() + "output: elsewhere\n")
    assert main(["eval", "moved", "limit=9"]) == 0
    assert "0.2500" in capsys.readouterr().out
    assert json.loads(run.joinpath("evaluation.json").read_text()) == {"test": {"accuracy": 0.25, "limit": 9}}


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.EACCES, "Permission denied"), (errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file")],
)
def test_what_the_file_system_refuses_is_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, number: int, said: str
) -> None:
    def refuse(source: Path, dest: Path) -> None:
        raise OSError(number, os.strerror(number), str(dest))

    monkeypatch.setattr("shutil.copyfile", refuse)
    assert main(["copy", "vision/lora_digits", "mine.yaml"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    with pytest.raises(OSError, match=said):
        main(["copy", "vision/lora_digits", "mine.yaml", "--debug"])


@pytest.mark.parametrize("command", ["train", "eval", "predict", "copy", "merge"])
def test_names_that_no_file_system_takes_are_a_message(capsys: Capture, command: str) -> None:
    more = {"copy": ["x"], "merge": ["adapter", "x" * 300 + ".safetensors"]}.get(command, [])
    assert main([command, "x" * 300, *more]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error) < 5000


def test_an_output_that_no_file_system_takes_is_a_message(capsys: Capture) -> None:
    Path("long.yaml").write_text(Path("count.yaml").read_text() + f"output: {'x' * 300}\n")
    assert main(["show", "long.yaml"]) == 0
    assert main(["eval", "long.yaml"]) == 2
