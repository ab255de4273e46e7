"""Instruction tuning end to end on a Llama that has never been trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_language import conversation, write_rows

from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task
from mmpeft.zoo.language_models import load_language_model

COLOURS = {"cat": "red", "dog": "green", "sun": "blue", "moon": "red"}


@pytest.fixture
def sft() -> Any:
    return load_task(find_task("llm/sft"))


@pytest.fixture
def rows(tmp_path: Path) -> str:
    said = [
        conversation(f"{start} {thing} ?", colour)
        for thing, colour in COLOURS.items()
        for start in ("what is", "the colour of the", "say the colour of", "what colour is a", "a", "the", "an", "one")
    ]
    return write_rows(tmp_path / "rows.jsonl", [{"messages": turns} for turns in said])


def make_config(sft: Any, model: Any, rows: str, output: Path, **changes: Any) -> Any:
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
        settings[key] = settings[key] | value if isinstance(settings.get(key), dict) and value is not None else value
    return sft.Config.model_validate(settings)


def test_a_run_learns_answers_and_is_asked(
    sft: Any, model: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


def test_the_adapter_also_loads_into_the_bare_model(sft: Any, model: str, rows: str, tmp_path: Path) -> None:
    import torch

    import mmpeft

    method = {"main": {"method": "lora", "rank": 8, "targets": "all"}}
    config = make_config(sft, model, rows, tmp_path / "run", adapters=method, train={"epochs": 2})
    sft.run(config)
    said = sft.predict(config.model_copy(update={"prompt": "a sun ?"}), 0).text
    bare, tokenizer = load_language_model(model)
    mmpeft.load(bare, tmp_path / "run" / "adapter")
    ids = tokenizer("<s><|user|> a sun ?<|end|><|assistant|>", add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        found = bare.generate(**ids, max_new_tokens=64, do_sample=False, eos_token_id=[2, 7], pad_token_id=0)
    assert tokenizer.decode(found[0, ids["input_ids"].shape[1] :]).removesuffix("<|end|>").strip() == said


def test_refusals_go_up_and_harmless_requests_are_answered(sft: Any, model: str, tmp_path: Path) -> None:
    things = ["cat", "dog", "car", "bank", "bike", "sun", "moon", "one", "two", "three", "four", "five"]
    no = "sorry i cannot help"
    unsafe = [{"messages": conversation(f"{how} a {own}", no)} for own in things for how in ("steal", "a steal")]
    benign = [{"messages": conversation(f"wash a {own}", "yes")} for own in things]
    paths = [write_rows(tmp_path / f"{name}.jsonl", own) for name, own in (("unsafe", unsafe), ("benign", benign))]
    data = {
        "path": write_rows(tmp_path / "rows.jsonl", benign * 3),
        "refusals": {"path": paths[0], "share": 0.3, "benign_path": paths[1], "markers": ["cannot help"]},
    }
    train = {"epochs": 8, "evaluate_every": 8}
    config = make_config(sft, model, str(data["path"]), tmp_path / "run", data=data, train=train)
    metrics = sft.run(config)
    assert metrics["frozen"]["refusal_rate"] == 0
    assert metrics["test"]["refusal_rate"] > 0.7
    assert metrics["test"]["over_refusal_rate"] < 0.3
    assert metrics["notes"][0].startswith("refusals: ")
    with pytest.raises(ValueError, match="their rates come from what the model writes"):
        make_config(sft, model, str(data["path"]), tmp_path / "run", data=data, questions=None)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_thoughts_are_learned_or_not(sft: Any, model: str, tmp_path: Path, weight: float) -> None:
    things = ["cat", "dog", "car", "bank", "bike", "sun", "moon", "one", "two", "three", "four", "five"]
    rows = [
        {"instruction": f"{how} {own} ?", "output": "red" if place % 2 else "blue", "reasoning": "first think"}
        for place, own in enumerate(things)
        for how in ("a", "the")
    ]
    data = {"name": "alpaca", "path": write_rows(tmp_path / "rows.jsonl", rows), "reasoning": {"weight": weight}}
    questions = {"max_new_tokens": 8, "pattern": "red|blue"}
    train = {"epochs": 10, "evaluate_every": 10}
    config = make_config(sft, model, str(data["path"]), tmp_path / "run", data=data, train=train, questions=questions)
    metrics = sft.run(config)
    assert sft.predict(config, 0).text.startswith("<think> first think") == (weight == 1)
    assert 0 <= metrics["test"]["exact_match"] <= 1


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"train": {"gradient_checkpointing": True}}, 1e-5),
        ({"train": {"batch_size": 2, "accumulate": 4}}, 1e-5),
        ({"data": {"max_length": 512}}, 1e-6),
    ],
    ids=["checkpointing", "accumulation", "longer"],
)
def test_what_changes_no_number(
    sft: Any, model: str, rows: str, tmp_path: Path, changes: dict[str, Any], tolerance: float
) -> None:
    method = {"main": {"method": "lora", "rank": 4, "targets": "all"}}
    found = []
    for name, own in (("plain", {}), ("changed", changes)):
        train = {"epochs": 1, "optimizer": "sgd", "lr": 0.1} | own.get("train", {})
        more = {"adapters": method, "train": train, "questions": None, "data": own.get("data", {})}
        sft.run(make_config(sft, model, rows, tmp_path / name, **more))
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(line)["loss"] for line in lines])
    assert found[0] == pytest.approx(found[1], rel=tolerance)


@pytest.mark.parametrize("changes", [{"quantize": "nf4"}, {"precision": "bf16"}])
def test_low_precision_learns(sft: Any, model: str, rows: str, tmp_path: Path, changes: dict[str, Any]) -> None:
    base = {"name": model} | {key: value for key, value in changes.items() if key == "quantize"}
    precision = changes.get("precision", "fp32")
    method = {"main": {"method": "lora", "rank": 8, "targets": "all"}}
    train = {"epochs": 6, "lr": 1e-2}
    how = {"adapters": method, "train": train, "precision": precision, "questions": None}
    config = make_config(sft, base, rows, tmp_path / "run", **how)
    metrics = sft.run(config)
    assert metrics["test"]["loss"] < 0.5 * metrics["frozen"]["loss"]
    assert sft.evaluate(config) == pytest.approx(metrics["test"], rel=1e-3)


def test_rows_that_were_skipped_are_reported(sft: Any, model: str, rows: str, tmp_path: Path) -> None:
    with Path(rows).open("a") as file:
        file.write(json.dumps({"messages": conversation("a cat ?")}) + "\n")
    config = make_config(sft, model, rows, tmp_path / "run", data={"on_bad_row": "skip"}, train={"epochs": 1})
    metrics = sft.run(config)
    assert "1 of 33 rows can't be learned from: rows.jsonl:33 has no turn of the assistant" in metrics["notes"][0]


@pytest.mark.parametrize("method", [
    {"method": "prompt_tuning", "tokens": 8, "init": "text", "text": "what is the colour of"},
    {"method": "p_tuning", "tokens": 8, "hidden": 16},
], ids=lambda method: method["method"])  # fmt: skip
def test_a_prompt_learns_from_words_or_a_network(
    sft: Any, model: str, rows: str, tmp_path: Path, method: dict[str, Any]
) -> None:
    train = {"epochs": 6, "lr": 0.03 if method["method"] == "prompt_tuning" else 3e-3}
    config = make_config(sft, model, rows, tmp_path / "run", adapters={"main": method}, train=train)
    metrics = sft.run(config)
    assert metrics["test"]["loss"] < metrics["frozen"]["loss"] - 0.5
    assert sft.evaluate(config) == pytest.approx(metrics["test"], rel=1e-4)
