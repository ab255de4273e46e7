"""Instruction tuning end to end on a Llama that has never been trained."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_language import conversation, write_rows

from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task

COLOURS = {"cat": "red", "dog": "green", "sun": "blue", "moon": "red"}


@pytest.fixture
def sft() -> ModuleType:
    return load_task(find_task("llm/sft"))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    said = [
        conversation(f"{start} {thing} ?", colour)
        for thing, colour in COLOURS.items()
        for start in ("what is", "the colour of the", "say the colour of", "what colour is a", "a", "the", "an", "one")
    ]
    return write_rows(tmp_path / "rows.jsonl", [{"messages": turns} for turns in said])


def make_config(sft: ModuleType, model: str, rows: str, output: Path, **changes: Any) -> Any:
    settings = {
        "task": "llm/sft",
        "model": model,
        "adapters": {"main": {"method": "full_fine_tuning"}},
        "data": {"name": "messages", "path": rows, "validation": 8, "test": 8},
        "train": {"epochs": 12, "batch_size": 8, "lr": 4e-3, "evaluate_every": 6},
        "questions": {"max_new_tokens": 4},
        "output": str(output),
    }
    for key, value in changes.items():
        settings[key] = settings[key] | value if isinstance(settings.get(key), dict) and value else value
    return sft.Config.model_validate(settings)


def test_a_run_learns_answers_and_is_asked(
    sft: ModuleType, model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(sft, model, rows, tmp_path / "run")
    metrics = sft.run(config)
    assert metrics["test"]["exact_match"] > 0.7
    assert metrics["test"]["loss"] < 0.5 < metrics["frozen"]["loss"]
    assert metrics["frozen"]["exact_match"] == 0
    assert sft.evaluate(config) == pytest.approx(metrics["test"])
    main(["predict", str(tmp_path / "run"), "prompt=what is the sun ?"])
    assert capsys.readouterr().out.splitlines()[-1] == "blue"
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"] == metrics["test"]


@pytest.mark.parametrize("method", [
    {"method": "prompt_tuning", "tokens": 8, "init": "text", "text": "what is the colour of"},
    {"method": "p_tuning", "tokens": 8, "hidden": 16},
], ids=lambda method: method["method"])  # fmt: skip
def test_a_prompt_learns_from_words_or_a_network(
    sft: ModuleType, model: str, rows: str, tmp_path: Path, method: dict[str, Any]
) -> None:
    train = {"epochs": 6, "lr": 0.03 if method["method"] == "prompt_tuning" else 3e-3}
    config = make_config(sft, model, rows, tmp_path / "run", adapters={"main": method}, train=train)
    metrics = sft.run(config)
    assert metrics["test"]["loss"] < metrics["frozen"]["loss"] - 0.5
    assert sft.evaluate(config) == pytest.approx(metrics["test"], rel=1e-4)
