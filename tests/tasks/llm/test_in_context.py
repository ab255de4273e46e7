"""Labels by examples in the prompt: scores, calibration, the draw of examples, a run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import llama, tokenizer, write_rows

import mmpeft
from mmpeft.assembly.in_context import make_shots
from mmpeft.cli.shipped import find_task, load_task
from mmpeft.data.language.demonstrations import PromptFormat, Prompts, draw_examples
from mmpeft.data.language.labelled import LabelledRows, read_labelled
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.heads.token_probabilities import TokenScorer
from mmpeft.objectives.in_context import calibrate, score_choices

THINGS = ["cat", "dog", "sun", "moon", "car", "bank", "bike", "one", "two", "three", "four", "five"]
WORDS = {"bad": "no", "good": "yes , yes"}
ASKED = {"text": "a cat", "text_pair": None}
FORMAT = {"template": "{text} answer : {label}", "separator": " | ", "words": WORDS}


@pytest.fixture(scope="module")
def task() -> Any:
    return load_task(find_task("llm/in_context"))


@pytest.fixture
def words(tmp_path: Path) -> str:
    rows = [
        {"text": f"{start} {thing} {word} .", "label": label}
        for thing in THINGS
        for start in ("a", "the")
        for word, label in (("plus", "good"), ("minus", "bad"))
    ]
    return write_rows(tmp_path / "words.jsonl", rows)


@pytest.fixture
def rows(words: str) -> LabelledRows:
    return read_labelled(LabelledTexts(path=words, validation=6, test=6))


def settings(model: str, path: str, output: Path, **changes: Any) -> dict[str, Any]:
    data = {"path": path, "validation": 6, "test": 6, **changes.pop("data", {})}
    prompt = FORMAT | changes.pop("prompt", {})
    fixed = {"task": "llm/in_context", "model": model, "shots": [0, 2], "output": str(output)}
    return {**fixed, "data": data, "prompt": prompt, **changes}


@pytest.mark.parametrize("chat", [False, True])
def test_scores_are_those_of_a_plain_forward_pass(rows: LabelledRows, chat: bool) -> None:
    model = llama()
    prompts = Prompts(tokenizer(), PromptFormat.model_validate(FORMAT | {"chat": chat}), rows.classes)
    examples = draw_examples(rows.parts, rows.classes, 3, seed=0)
    encoded = [prompts.encode(examples, row.fields) for row in rows.parts["test"]]
    scores = score_choices(TokenScorer(model).eval(), encoded, batch_size=5)
    for row, choices in enumerate(encoded):
        for place, word in enumerate(WORDS.values()):
            tokens, start = choices[place]
            label = tokenizer()(word, add_special_tokens=False)["input_ids"]
            assert tokens[start:] == label
            with torch.no_grad():
                logs = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            mean = sum(logs[start - 1 + at, token] for at, token in enumerate(label)) / len(label)
            torch.testing.assert_close(scores[row, place], mean, rtol=1e-4, atol=1e-5)


def test_a_prompt_is_written_as_the_template_says(rows: LabelledRows) -> None:
    form = PromptFormat.model_validate(FORMAT | {"instruction": "say"})
    example = next(row for row in rows.parts["train"] if row.fields["label"] == 0)
    bare, full = Prompts(tokenizer(), form, rows.classes).render([example], ASKED, "no")
    assert full == f"say | {example.fields['text']} answer : no | a cat answer : no"
    assert bare == full.removesuffix("no")


def test_a_chat_has_the_examples_as_turns(rows: LabelledRows) -> None:
    form = PromptFormat.model_validate(FORMAT | {"chat": True})
    example = next(row for row in rows.parts["train"] if row.fields["label"] == 0)
    _, full = Prompts(tokenizer(), form, rows.classes).render([example], ASKED, "no")
    first = f"<s><|user|> {example.fields['text']} answer :<|end|><|assistant|> no<|end|>"
    assert full == f"{first}<|user|> a cat answer :<|end|><|assistant|> no"


def test_calibration_divides_by_what_says_nothing() -> None:
    scores, free = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]), torch.tensor([[-0.1, -3.0], [-0.5, -1.0]])
    shares = free.exp() / free.exp().sum(-1, keepdim=True)
    wanted = scores.exp() / shares.mean(0)
    torch.testing.assert_close(calibrate(scores, free).exp(), wanted / wanted.sum(-1, keepdim=True))
    same = calibrate(free[:1], free[:1])
    torch.testing.assert_close(same.exp(), torch.full((1, 2), 0.5))


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_examples_are_balanced_and_drawn_by_the_seed(rows: LabelledRows, count: int) -> None:
    def drawn(seed: int) -> list[str]:
        return [row.id for row in draw_examples(rows.parts, rows.classes, count, seed)]

    labels = [row.fields["label"] for row in draw_examples(rows.parts, rows.classes, count, 0)]
    assert len(set(drawn(0))) == count
    assert abs(labels.count(0) - labels.count(1)) == count % 2
    assert drawn(0) == drawn(0)
    assert count < 2 or len({tuple(drawn(seed)) for seed in range(5)}) > 1
    larger = [row.id for row in draw_examples(rows.parts, rows.classes, count + 1, 0)]
    assert set(drawn(0)) < set(larger)


def test_no_example_is_asked(rows: LabelledRows) -> None:
    train = rows.parts["train"]
    asked = [row for row in train if row.fields["label"] == 0][:-1] + [row for row in train if row.fields["label"]][:-1]
    examples = draw_examples(rows.parts | {"test": asked}, rows.classes, 2, 0)
    assert {row.id for row in examples} == {row.id for row in train} - {row.id for row in asked}
    with pytest.raises(ValueError, match="has only 1 training rows"):
        draw_examples(rows.parts | {"test": asked}, rows.classes, 3, 0)


def test_a_run_compares_adapters_by_the_number_of_examples(
    task: Any, model: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer = TokenScorer(mmpeft.load_model(model))
    adapters = mmpeft.adapt(scorer, {"method": "lora", "rank": 2, "targets": "all"}, name="own")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    adapters.save(tmp_path / "adapter")
    plain = settings(model, words, tmp_path / "plain", seeds=[0, 1], calibration=["", "yes"])
    task.run(task.Config.model_validate(plain))
    beside = plain | {"load": {"tuned": str(tmp_path / "adapter")}, "output": str(tmp_path / "beside")}
    task.run(task.Config.model_validate(beside))
    alone, both = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "beside"))
    assert both["accuracy_by_seed"]["frozen"] == alone["accuracy_by_seed"]["frozen"]
    assert {count: len(own) for count, own in alone["accuracy_by_seed"]["frozen"].items()} == {"0": 1, "2": 2}
    assert both["accuracy"].keys() == {"frozen", "tuned"}
    config = task.Config.model_validate(beside)
    _, prompts, rows, limit = task.make(config)
    expected = [
        make_shots(prompts, rows, 2, seed, config.calibration, limit).accuracy(scorer.eval(), 3) for seed in (0, 1)
    ]
    assert both["accuracy_by_seed"]["tuned"]["2"] == expected
    assert len(alone["examples"]["k=2 seed=1"]) == 2
    assert (tmp_path / "beside" / "curves.png").stat().st_size > 1000
    assert "k = 2" in capsys.readouterr().out
    with pytest.raises(ValueError, match="already holds a run"):
        task.run(task.Config.model_validate(plain | {"output": str(tmp_path)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": {"template": "{text}"}}, r"ends with \{label\}, which comes once"),
        ({"prompt": {"template": "{tekst} {label}"}}, r"\{tekst\} is none of text"),
        (
            {"prompt": {"template": "{text} {text_pair} {label}"}},
            r"prompt\.template: has \{text_pair\}, but the data has",
        ),
        ({"prompt": {"words": {"goood": "yes"}}}, r"prompt\.words\.goood: no class"),
        ({"prompt": {"words": {"good": "bad"}}}, r"prompt\.words: 'bad' stands for several"),
        ({"shots": [200]}, r"shots: 200: class '(good|bad)' has only"),
        ({"shots": [8], "data": {"max_length": 20}}, r"shots: 8: the prompt of .* data\.max_length takes 20"),
        ({"load": {"frozen": "x"}}, r"load\.frozen: this is what"),
        ({"data": {"labels": "number"}}, r"data\.labels: 'number'"),
    ],
)
def test_what_is_refused(
    task: Any, model: str, words: str, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        task.run(task.Config.model_validate(settings(model, words, tmp_path / "run", **changes)))


def test_the_model_positions_are_the_limit(task: Any, words: str, tmp_path: Path) -> None:
    llama(max_position_embeddings=24).save_pretrained(tmp_path / "short")
    tokenizer().save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match=r"shots: 6: .* takes 24: fewer shots"):
        task.run(task.Config.model_validate(settings(str(tmp_path / "short"), words, tmp_path / "run", shots=[6])))
