"""In-context evaluation on a Llama that has never been trained."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_language import llama, tokenizer, write_rows

import mmpeft
from mmpeft.cli.shipped import find_task, load_task
from mmpeft.heads.language import TokenScorer
from mmpeft.objectives.in_context import Wording, calibrated, draw_examples, word_scores

ROWS = [{"text": f"{how} {thing}", "label": name} for thing in ("cat", "dog", "sun", "moon", "car", "bike")
        for how, name in (("big", "red"), ("small", "blue"))]  # fmt: skip


@pytest.fixture
def in_context() -> ModuleType:
    return load_task(find_task("llm/in_context"))


def settings(model: str, path: str, output: Path, **changes: Any) -> dict[str, Any]:
    data = {"path": path, "validation": 2, "test": 4}
    return {"task": "llm/in_context", "model": model, "data": data, "shots": [0, 2], "output": str(output), **changes}


def test_adapters_are_asked_beside_the_frozen_model(in_context: ModuleType, model: str, tmp_path: Path) -> None:
    bare = llama()
    adapters = mmpeft.adapt(bare, mmpeft.LoRA(rank=4, targets="all"))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    adapters.save(tmp_path / "adapter")
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    own = settings(
        model, path, tmp_path / "run", load={"tuned": str(tmp_path / "adapter")}, seeds=[0, 1], calibrate=True
    )
    found = in_context.ask(in_context.Config.model_validate(own))
    assert found.keys() == {"frozen", "tuned"}
    assert all(0 <= share <= 1 for one in found.values() for share in one.values())
    assert json.loads((tmp_path / "run/metrics.json").read_text())["accuracy"] == found
    assert (tmp_path / "run/table.md").read_text().startswith("| examples | 0 | 2 |")
    again = in_context.ask(in_context.Config.model_validate(settings(model, path, tmp_path / "again")))
    assert (
        again["frozen"]["0"]
        == in_context.ask(in_context.Config.model_validate(settings(model, path, tmp_path / "third", batch_size=1)))[
            "frozen"
        ]["0"]
    )


def test_scores_are_the_library_s_mean_log_probabilities() -> None:
    words, model = (" red", " blue and green", " no ."), llama().eval()
    prompts = ["a big cat is", "the moon"]
    found = word_scores(TokenScorer(model), tokenizer(), prompts, words)
    for row, prompt in enumerate(prompts):
        start = len(tokenizer()(prompt)["input_ids"])
        for column, word in enumerate(words):
            ids = torch.tensor([tokenizer()(prompt + word)["input_ids"]])
            logs = model(ids).logits.log_softmax(-1)[0]
            parts = [float(logs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])]
            assert float(found[row, column]) == pytest.approx(sum(parts) / len(parts), abs=1e-5)


def test_examples_are_balanced_and_the_same_for_a_seed() -> None:
    rows = [{"text": str(number), "label": number % 3} for number in range(30)]
    for count in (0, 1, 3, 7):
        drawn = draw_examples(rows, 3, count, Random("a"))
        assert drawn == draw_examples(rows, 3, count, Random("a"))
        numbers = [sum(row["label"] == label for row in drawn) for label in range(3)]
        assert len(drawn) == count and max(numbers) - min(numbers) <= 1
    with pytest.raises(ValueError, match="shots: 33 need 11 rows of each of 3 classes, and one has 10"):
        draw_examples(rows, 3, 33, Random("a"))


def test_a_question_has_its_examples_in_front() -> None:
    wording = Wording("{text}\nIs it {text_pair}?", (" yes", " no"))
    shown = [{"text": "a cat", "text_pair": "big", "label": 1}]
    asked = wording.question({"text": "a dog", "text_pair": "small", "label": 0}, shown)
    assert asked == "a cat\nIs it big? no\n\na dog\nIs it small?"


def test_calibration_divides_by_what_a_prompt_without_content_gives() -> None:
    scores, free = torch.randn(2, 3).double(), torch.randn(3).double()
    found = calibrated(scores, free)
    expected = (scores.softmax(-1) / free.softmax(-1)).log()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": {"frozen": "x"}}, "'frozen' is what the model without adapters is called"),
        ({"data": {"path": "x", "labels": "number"}}, "words are of classes"),
    ],
)
def test_what_is_refused(in_context: ModuleType, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        in_context.Config.model_validate(settings("m", "rows", tmp_path, **changes))


def test_a_prompt_beyond_the_model_s_positions_is_named() -> None:
    model = TokenScorer(llama(max_position_embeddings=4))
    with pytest.raises(ValueError, match=r"shots: a prompt has \d+ tokens, and the model reads 4: fewer shots"):
        word_scores(model, tokenizer(), ["a big cat is red"], [" no"])
