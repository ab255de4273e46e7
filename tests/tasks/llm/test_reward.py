"""Reward modelling end to end on a Llama that has never been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_language import write_rows

from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task

THINGS = ["cat", "dog", "sun", "moon", "car", "bank", "bike", "one", "two", "three", "four", "five"]


@pytest.fixture
def reward() -> Any:
    return load_task(find_task("llm/reward"))


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [
        {"prompt": f"{start} {thing} ?", "chosen": " yes .", "rejected": " no no ."}
        for thing in THINGS
        for start in ("a", "the", "what is a")
    ]
    return write_rows(tmp_path / "pairs.jsonl", rows)


@pytest.mark.parametrize("method", [{"method": "lora", "rank": 4, "targets": "all"}, {"method": "full_fine_tuning"}])
def test_a_run_tells_better_from_worse(
    reward: Any, model: str, pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: Any
) -> None:
    settings: dict[str, Any] = {
        "task": "llm/reward",
        "model": model,
        "adapters": {"main": method},
        "data": {"name": "preference", "path": pairs, "validation": 6, "test": 6},
        "train": {"epochs": 3, "batch_size": 6, "lr": 1e-2},
        "centering": 0.01,
        "output": str(tmp_path / "run"),
    }
    config = reward.Config.model_validate(settings)
    metrics = reward.run(config)
    assert metrics["test"]["accuracy"] == 1
    assert metrics["trainable_parameters"] > 33
    assert reward.evaluate(config) == pytest.approx(metrics["test"])
    capsys.readouterr()
    said = []
    for answer in (" yes .", " no no ."):
        main(["predict", str(tmp_path / "run"), "prompt=a cat ?", f"answer={answer!r}"])
        said.append(float(capsys.readouterr().out.split("reward ")[-1]))
    assert said[0] > said[1]
    assert reward.predict(config, 0).text.startswith("chosen ")
    with pytest.raises(ValueError, match="give both, or none"):
        reward.Config.model_validate(settings | {"answer": "yes"})
    assert "ScalarScorer(mmpeft.load_model" in (tmp_path / "run" / "README.md").read_text()
