"""Preference alignment end to end on a Llama that has never been trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tiny_language import conversation, write_rows

from mmpeft.cli.shipped import find_task, load_task

THINGS = ["cat", "dog", "sun", "moon", "car", "bank", "bike", "one", "two", "three", "four", "five"]


@pytest.fixture
def preference() -> Any:
    return load_task(find_task("llm/preference"))


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    yes, no = [{"role": "assistant", "content": "yes ."}], [{"role": "assistant", "content": "no no ."}]
    rows = [
        {"prompt": conversation(f"{start} {thing} ?"), "chosen": yes, "rejected": no}
        for thing in THINGS
        for start in ("a", "the", "what is a")
    ]
    return write_rows(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def singles(tmp_path: Path) -> str:
    rows = [
        {"prompt": f"{start} {thing} ?", "completion": " yes ." if i % 2 else " no no .", "label": bool(i % 2)}
        for i, thing in enumerate(THINGS)
        for start in ("a", "the", "what is a")
    ]
    return write_rows(tmp_path / "singles.jsonl", rows)


def make_config(preference: Any, model: str, path: str, output: Path, **changes: Any) -> Any:
    settings = {
        "task": "llm/preference",
        "model": model,
        "adapters": {"main": {"method": "lora", "rank": 4, "targets": "all"}},
        "data": {"name": "preference", "path": path, "validation": 6, "test": 6},
        "train": {"epochs": 3, "batch_size": 6, "lr": 1e-2, "schedule": "constant"},
        "writing": {"max_new_tokens": 4},
        "output": str(output),
    }
    return preference.Config.model_validate(settings | changes)


def first_loss(output: Path) -> float:
    return float(json.loads((output / "metrics.jsonl").read_text().splitlines()[0])["loss"])


@pytest.mark.parametrize(
    ("loss", "start"),
    [
        ("dpo", math.log(2)),
        ({"name": "dpo", "label_smoothing": 0.1}, math.log(2)),
        ({"name": "robust", "label_smoothing": 0.1}, math.log(2)),
        ("ipo", 25.0),
        ("hinge", 1.0),
        ("kto", 0.5),
        ("orpo", None),
        ({"name": "simpo", "beta": 2.0}, None),
        ("cpo", None),
    ],
    ids=str,
)
def test_a_policy_comes_to_prefer(
    preference: Any, model: str, pairs: str, tmp_path: Path, loss: Any, start: float | None
) -> None:
    config = make_config(preference, model, pairs, tmp_path / "run", loss=loss)
    metrics = preference.run(config)
    if start is not None:
        assert first_loss(tmp_path / "run") == pytest.approx(start, rel=1e-4)
    assert metrics["test"]["accuracy"] == 1
    assert metrics["test"]["margin"] > 0
    assert preference.evaluate(config) == pytest.approx(metrics["test"])


def test_unpaired_answers(preference: Any, model: str, singles: str, tmp_path: Path) -> None:
    data = {"name": "unpaired", "path": singles, "validation": 6, "test": 6}
    config = make_config(preference, model, singles, tmp_path / "run", loss="kto", data=data)
    metrics = preference.run(config)
    assert first_loss(tmp_path / "run") == pytest.approx(0.5)
    assert metrics["test"]["margin"] > 0.1
    assert metrics["test"]["loss"] < 0.5
    assert "accuracy" not in metrics["test"]
    with pytest.raises(ValueError, match="compares answers, and data"):
        make_config(preference, model, singles, tmp_path / "run", data=data)


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_a_precomputed_reference_changes_no_number(
    preference: Any, model: str, pairs: str, tmp_path: Path, loss: str
) -> None:
    found = []
    for reference in ("off", "precomputed"):
        config = make_config(preference, model, pairs, tmp_path / reference, loss=loss, reference=reference)
        found.append(preference.run(config)["test"])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_finished_run_writes(preference: Any, model: str, pairs: str, tmp_path: Path) -> None:
    config = make_config(preference, model, pairs, tmp_path / "run", train={"epochs": 12, "batch_size": 6, "lr": 1e-2})
    preference.run(config.model_copy(update={"loss": config.loss.model_copy(update={"name": "orpo"})}))
    assert preference.predict(config, 0).text.startswith("yes")
    assert preference.predict(config.model_copy(update={"prompt": "a cat ?"}), 0).text.startswith("yes")
