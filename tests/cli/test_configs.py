"""``show`` and ``copy``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpeft.cli import main
from mmpeft.cli.shipped import configs, tasks
from mmpeft.configuration import load_config
from mmpeft.training.config import RunConfig

Capture = pytest.CaptureFixture[str]


def test_show_tells_the_origin_of_each_value(count: Path, capsys: Capture) -> None:
    assert main(["show", "count.yaml", "train.lr=3e-4"]) == 0
    lines = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in capsys.readouterr().out.splitlines()}
    assert lines["lr"] == "override"
    assert lines["rank"] == lines["method"] == "count.yaml:4"
    assert lines["limit"] == lines["output"] == lines["alpha"] == "default"


def test_what_show_prints_is_a_configuration(count: Path, capsys: Capture) -> None:
    main(["show", "count.yaml", "adapters.two=[{method: lora, rank: 2}, ssf]"])
    shown = capsys.readouterr().out
    Path("shown.yaml").write_text(shown)
    main(["show", "shown.yaml"])
    strip = [line.split("  # ")[0].rstrip() for line in shown.splitlines()]
    assert [line.split("  # ")[0].rstrip() for line in capsys.readouterr().out.splitlines()] == strip


def test_copy_a_configuration_and_a_task(count: Path, capsys: Capture) -> None:
    assert main(["copy", "vision/lora_digits", "mine.yaml"]) == 0
    assert Path("mine.yaml").read_text() == configs()["vision/lora_digits"].read_text()
    assert "mmpeft train mine.yaml" in capsys.readouterr().out
    assert main(["copy", "tasks/vision/classify.py", "."]) == 0
    assert Path("classify.py").read_text() == tasks()["vision/classify"].read_text()
    config, _ = load_config(Path("mine.yaml"), ["output=x"], RunConfig)
    assert config.task == "vision/classify"


def test_copy_overwrites_nothing(count: Path, capsys: Capture) -> None:
    before = Path("count.yaml").read_text()
    assert main(["copy", "vision/lora_digits", "count.yaml"]) == 2
    assert "'count.yaml' exists and is not overwritten" in capsys.readouterr().err
    assert Path("count.yaml").read_text() == before
    assert main(["copy", "vision/lora_digit", "new.yaml"]) == 2
    assert "did you mean 'vision/lora_digits'" in capsys.readouterr().err
