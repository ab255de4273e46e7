"""Text classification and regression end to end, on an encoder and a decoder that have never been trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_language import bert, save_model, write_rows

from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task

THINGS = ["cat", "dog", "sun", "moon", "car", "bank", "bike", "one", "two", "three", "four", "five"]
FULL = {"method": "full_fine_tuning"}
LORA = {"method": "lora", "rank": 4, "targets": "all"}


@pytest.fixture(scope="module")
def classify() -> Any:
    return load_task(find_task("llm/classify"))


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("bert"), bert())


@pytest.fixture
def words(tmp_path: Path) -> str:
    rows = [
        {"text": f"{start} {thing} {word} .", "label": label}
        for thing in THINGS
        for start in ("a", "the")
        for word, label in (("yes", "good"), ("no", "bad"))
    ]
    return write_rows(tmp_path / "words.jsonl", rows)


def settings(model: str, path: str, output: Path, method: Any, **data: Any) -> dict[str, Any]:
    return {
        "task": "llm/classify",
        "model": model,
        "adapters": {"main": method},
        "data": {"path": path, "validation": 6, "test": 6, **data},
        "train": {"epochs": 5, "batch_size": 6, "lr": 1e-2},
        "output": str(output),
    }


@pytest.mark.parametrize("method", [LORA, FULL, {"method": "linear_probe"}], ids=lambda method: method["method"])
@pytest.mark.parametrize("kind", ["encoder", "model"])
def test_a_run_learns_labels(
    classify: Any,
    words: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    method: Any,
) -> None:
    output = tmp_path / "run"
    config = classify.Config.model_validate(settings(request.getfixturevalue(kind), words, output, method))
    metrics = classify.run(config)
    assert set(metrics["test"]) == {"accuracy", "f1", "matthews", "loss"}
    if method["method"] != "linear_probe":
        assert metrics["test"]["accuracy"] == 1
    assert classify.evaluate(config) == pytest.approx(metrics["test"])
    assert yaml.safe_load((output / "config.yaml").read_text())["data"]["classes"] == ["bad", "good"]
    capsys.readouterr()
    main(["predict", str(output), "text=a cat yes ."])
    assert " -> " in (said := capsys.readouterr().out) and "%" in said
    assert "num_classes=2" in (output / "README.md").read_text()


def test_a_probe_of_static_features_trains_the_head_alone(
    classify: Any, encoder: str, words: str, tmp_path: Path
) -> None:
    trainer, _ = classify.build(
        classify.Config.model_validate(settings(encoder, words, tmp_path / "run", {"method": "linear_probe"})),
    )
    assert sum(parameter.numel() for parameter in trainer.adapters.parameters()) == 2 * 32 + 2


def test_pairs_are_scored_by_a_number(
    classify: Any, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"sentence1": f"a {one}", "sentence2": f"a {other}", "score": float(one == other)}
        for one in THINGS
        for other in (one, THINGS[(THINGS.index(one) + 5) % 12])
    ]
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    columns = {"text": "sentence1", "text_pair": "sentence2", "label": "score"}
    given = settings(encoder, path, tmp_path / "run", LORA, labels="number", columns=columns)
    config = classify.Config.model_validate(given)
    metrics = classify.run(config)
    assert set(metrics["test"]) == {"pearson", "spearman", "loss"}
    assert classify.evaluate(config) == pytest.approx(metrics["test"])
    said = classify.predict(config, 0).text
    assert float(said.split(" -> ")[-1]) < 3
    classify.check(config)
    assert "one step" in capsys.readouterr().out
    with pytest.raises(ValueError, match="give its text too"):
        classify.Config.model_validate(given | {"text_pair": "a cat"})
    with pytest.raises(ValueError, match="index: 99 is not among the 6"):
        classify.predict(config, 99)
