"""Sequence to sequence end to end, on a T5 and a BART that have never been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import save_model, write_rows, writer

from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task
from mmpeft.data.language.paired import load_paired
from mmpeft.data.language.task_config import PairedTexts
from mmpeft.zoo.language_models import load_text_tokenizer

THINGS = ["cat", "dog", "sun", "moon", "car", "bank", "bike", "one", "two", "three", "four", "five"]
FULL = {"method": "full_fine_tuning"}
LORA = {"method": "lora", "rank": 8, "targets": "all"}


@pytest.fixture(scope="module")
def seq2seq() -> Any:
    return load_task(find_task("llm/seq2seq"))


@pytest.fixture(scope="session", params=["t5", "bart"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp(request.param), writer(request.param), pairs=request.param == "bart")


@pytest.fixture
def rows(tmp_path: Path) -> str:
    made = [{"source": f"{start} {thing} .", "target": "yes no"} for thing in THINGS for start in ("a", "the", "two")]
    return write_rows(tmp_path / "rows.jsonl", made)


def settings(model: str, path: str, output: Path, method: Any = LORA) -> dict[str, Any]:
    return {
        "task": "llm/seq2seq",
        "model": model,
        "adapters": {"main": method},
        "data": {"path": path, "validation": 4, "test": 4, "prefix": "say : "},
        "train": {"epochs": 6, "batch_size": 6, "lr": 1e-3},
        "max_new_tokens": 6,
        "output": str(output),
    }


@pytest.mark.parametrize("method", [LORA, FULL], ids=lambda method: method["method"])
def test_a_run_learns_to_write(
    seq2seq: Any, family: str, rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: Any
) -> None:
    output = tmp_path / "run"
    given = settings(family, rows, output, method)
    given["train"]["lr"] = 2e-2 if method is LORA else 3e-3
    config = seq2seq.Config.model_validate(given)
    metrics = seq2seq.run(config)
    assert metrics["test"]["exact_match"] == 1
    assert metrics["test"]["chrf"] == pytest.approx(1)
    assert metrics["frozen"]["exact_match"] == 0
    assert seq2seq.evaluate(config) == pytest.approx(metrics["test"], rel=1e-4)
    capsys.readouterr()
    main(["predict", str(output), "source=a moon ."])
    assert capsys.readouterr().out == "yes no\n"
    assert seq2seq.predict(config.model_copy(update={"beams": 2}), 0).text == "yes no (right: yes no)"


def test_the_loss_is_the_librarys(seq2seq: Any, family: str, rows: str, tmp_path: Path) -> None:
    config = seq2seq.Config.model_validate(settings(family, rows, tmp_path / "run"))
    parts = seq2seq.assemble(config)
    batch = parts.data.train.collate([parts.data.train[place] for place in range(4)])
    loss, _ = parts.objective(None).loss(parts.model, batch)
    labels = batch["labels"].masked_fill(batch["weights"] == 0, -100)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    own = parts.model.backbone(**inputs, labels=labels).loss * (labels >= 0).sum()
    torch.testing.assert_close(loss, own)


def test_bad_rows_and_models_without_an_encoder_are_errors(seq2seq: Any, model: str, tmp_path: Path, rows: str) -> None:
    with pytest.raises(ValueError, match="has no encoder: take T5"):
        seq2seq.run(seq2seq.Config.model_validate(settings(model, rows, tmp_path / "run")))
    bad = [
        {"source": f"a {thing}", "target": target} for thing, target in zip(THINGS[:3], ["", None, "yes"], strict=True)
    ]
    path = write_rows(tmp_path / "bad.jsonl", bad)
    texts = load_text_tokenizer(model)
    with pytest.raises(ValueError, match=r"bad.jsonl:1 has an empty target.*bad.jsonl:2 has NoneType as its target"):
        load_paired(PairedTexts(path=path), texts)


def test_columns_lie_inside_others(model: str, tmp_path: Path) -> None:
    made = [{"translation": {"en": f"a {thing}", "xx": f"{thing} a"}} for thing in THINGS]
    path = write_rows(tmp_path / "rows.jsonl", made)
    config = PairedTexts(path=path, columns={"source": "translation.en", "target": "translation.xx"})
    found = load_paired(config, load_text_tokenizer(model))
    assert found.train[0]["target"].endswith(" a")
