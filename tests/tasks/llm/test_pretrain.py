"""Continued pretraining end to end on a Llama that has never been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmpeft.cli.shipped import find_task, load_task

SENTENCES = ("a cat is red .", "a dog is green .", "the sun is blue .", "the moon is red .")


@pytest.fixture
def pretrain() -> Any:
    return load_task(find_task("llm/pretrain"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "texts").mkdir()
    for number in range(24):
        said = [SENTENCES[(number + step * (1 + number % 3)) % 4] for step in range(2 + number % 4)]
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(" ".join(said) + f" {number % 5 + 1}")
    return tmp_path / "texts"


def make_config(pretrain: Any, model: str, folder: Path, output: Path, **data: Any) -> Any:
    settings = {
        "task": "llm/pretrain",
        "model": model,
        "adapters": {"main": {"method": "full_fine_tuning"}},
        "data": {"name": "text", "path": str(folder), "max_length": 32, "validation": 4, "test": 4, **data},
        "train": {"epochs": 6, "batch_size": 4, "lr": 3e-3, "evaluate_every": 3},
        "output": str(output),
    }
    return pretrain.Config.model_validate(settings)


@pytest.mark.parametrize("packing", ["none", "whole", "wrapped"])
def test_a_run_learns_and_writes(pretrain: Any, model: str, folder: Path, tmp_path: Path, packing: str) -> None:
    config = make_config(pretrain, model, folder, tmp_path / "run", packing=packing)
    metrics = pretrain.run(config)
    assert metrics["test"]["perplexity"] < 0.5 * metrics["frozen"]["perplexity"]
    said = pretrain.predict(config.model_copy(update={"prompt": "a cat"}), 0).text
    assert said.startswith("is red .")
    with pytest.raises(ValueError, match="prompt: give one; the test split has documents"):
        pretrain.predict(config, 0)


def test_check_shows_what_is_learned(
    pretrain: Any, model: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain.check(make_config(pretrain, model, folder, tmp_path / "run"))
    text = capsys.readouterr().out
    assert "learned: 'a" in text or "learned: 'the" in text
    assert "one step: loss" in text
    assert not (tmp_path / "run").exists()
