"""Extractive question answering end to end, on an encoder and a decoder that have never been trained."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from tiny_language import bert, save_model, write_rows

from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task

THINGS = ["cat", "dog", "sun", "moon", "car", "bank", "bike", "one", "two", "three", "four", "five"]


@pytest.fixture(scope="module")
def reading() -> Any:
    return load_task(find_task("llm/extractive_qa"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"), bert())


def questions(path: Path, count: int = 60, unanswerable: bool = False) -> str:
    random, rows = Random(0), []
    for number in range(count):
        words = random.sample(THINGS, random.randint(4, 12))
        colour = random.choice(["red", "green", "blue"])
        missing = unanswerable and number % 3 == 0
        if not missing:
            words.insert(random.randrange(len(words)), colour)
        context = " ".join(words) + " ."
        answers = {"text": [] if missing else [colour], "answer_start": [] if missing else [context.index(colour)]}
        rows.append({"context": context, "question": "what colour ?", "answers": answers})
    return write_rows(path / "questions.jsonl", rows)


def settings(model: str, path: str, output: Path, **data: Any) -> dict[str, Any]:
    return {
        "task": "llm/extractive_qa",
        "model": model,
        "adapters": {"main": {"method": "lora", "rank": 4, "targets": "all"}},
        "data": {"path": path, "validation": 9, "test": 9, "max_length": 14, "stride": 2, **data},
        "train": {"epochs": 6, "batch_size": 6, "lr": 1e-2},
        "output": str(output),
    }


@pytest.mark.parametrize("kind", ["encoder", "model"])
def test_a_run_learns_to_point(
    reading: Any, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    output = tmp_path / "run"
    config = reading.Config.model_validate(settings(request.getfixturevalue(kind), questions(tmp_path), output))
    metrics = reading.run(config)
    assert set(metrics["test"]) == {"f1", "exact_match", "loss"}
    assert metrics["test"]["exact_match"] >= 0.8
    assert reading.evaluate(config) == pytest.approx(metrics["test"])
    capsys.readouterr()
    main(["predict", str(output), "context=a cat red dog .", "question=what colour ?"])
    assert capsys.readouterr().out.endswith("what colour ? red\n")
    assert "(right: " in reading.predict(config, 0).text
    assert 'task="question_answering"' in (output / "README.md").read_text()
    with pytest.raises(ValueError, match="give both, or none"):
        reading.Config.model_validate(settings("m", "p", output) | {"question": "what ?"})


def test_a_run_learns_when_there_is_no_answer(
    reading: Any, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = questions(tmp_path, unanswerable=True)
    given = settings(encoder, path, tmp_path / "run", unanswerable=True)
    config = reading.Config.model_validate(given)
    metrics = reading.run(config)
    assert set(metrics["test"]) == {"f1", "exact_match", "answerable_f1", "unanswerable_accuracy", "loss"}
    assert metrics["test"]["f1"] >= 0.7
    said = reading.predict(config.model_copy(update={"context": "a cat dog .", "question": "what colour ?"}), 0).text
    assert said.endswith("no answer")
    reading.check(config)
    assert "no answer here" in capsys.readouterr().out
