"""The task script end to end, on the embedded model and data, in a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mmpeft
from mmpeft.cli.shipped import find_task, load_task
from mmpeft.kernels.quantized import is_quantized

SETTINGS = {
    "task": "vision/classify",
    "model": "tiny/vit",
    "adapters": {"main": {"method": "lora", "rank": 2}},
    "data": {"name": "digits", "per_class": 4, "validation": 2, "test": 3},
    "train": {"epochs": 2, "batch_size": 16, "lr": 3e-3},
    "label_smoothing": 0.1,
}


@pytest.fixture(scope="module")
def classify() -> Any:
    return load_task(find_task("vision/classify"))


def make_config(classify: Any, output: Path, **changes: Any) -> Any:
    return classify.Config.model_validate({**SETTINGS, "output": str(output), **changes})


def test_a_run_leaves_what_the_design_promises(classify: Any, tmp_path: Path) -> None:
    config = make_config(classify, tmp_path / "run")
    metrics = classify.run(config)
    found = {path.name for path in config.output.iterdir()}
    assert found == {
        "adapter", "checkpoints", "config.yaml", "curves.png", "environment.json", "metrics.json", "metrics.jsonl",
        "README.md",
    }  # fmt: skip
    assert json.loads((config.output / "metrics.json").read_text()) == metrics
    numbers = ("trainable_parameters", "total_parameters", "seconds", "peak_memory_bytes")
    assert all(metrics[name] > 0 for name in numbers)
    assert set(metrics["validation"]) == set(metrics["test"]) == {"accuracy", "loss"}
    assert "on the validation split" in metrics["selected"]
    assert classify.Config.model_validate(yaml.safe_load((config.output / "config.yaml").read_text())) == config
    assert (config.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (config.output / "README.md").read_text()
    for part in (f"| test | {metrics['test']['accuracy']:.4f} |", "base_model: tiny/vit", "nothing about full-size"):
        assert part in card
    environment = json.loads((config.output / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]

    assert classify.evaluate(config) == pytest.approx(metrics["test"])
    model = mmpeft.load_model("tiny/vit", num_classes=10)
    handle = mmpeft.load(model, config.output / "adapter", name="main")
    assert handle.names == ["main"]
    with pytest.raises(ValueError, match="already holds a run"):
        classify.run(config)


def test_the_head_is_trained_beside_a_method_that_does_not(classify: Any, tmp_path: Path) -> None:
    counts = {}
    for method in ("lora", "linear_probe", "full_fine_tuning"):
        trainer, _ = classify.build(make_config(classify, tmp_path, adapters={"main": method}))
        names = [name for name, _ in trainer.adapters.named_parameters()]
        counts[method] = sum("head" in name and name.endswith(("weight", "bias")) for name in names)
    assert counts == {"lora": 2, "linear_probe": 2, "full_fine_tuning": 2}


def test_several_adapters_are_trained_saved_and_loaded_together(classify: Any, tmp_path: Path) -> None:
    adapters = {"first": ["bitfit", "linear_probe"], "second": "lora"}
    config = make_config(classify, tmp_path, adapters=adapters, train={"max_steps": 2})
    metrics = classify.run(config)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == ["first", "second"]
    assert classify.evaluate(config) == pytest.approx(metrics["test"])


def test_the_last_weights_are_kept_where_all_images_are_trained_on(classify: Any, tmp_path: Path) -> None:
    data = SETTINGS["data"] | {"validation": None}
    metrics = classify.run(make_config(classify, tmp_path, data=data, train={"max_steps": 2, "monitor": None}))
    assert "validation" not in metrics
    assert metrics["selected"] == "step 2, the last one, whatever its scores"
    card = (tmp_path / "README.md").read_text()
    assert "| test |" in card
    assert "| validation |" not in card
    assert classify.evaluate(make_config(classify, tmp_path, data=data)) == pytest.approx(metrics["test"])


def test_the_same_seed_gives_the_same_numbers(classify: Any, tmp_path: Path) -> None:
    first, second, other = (
        classify.run(make_config(classify, tmp_path / str(run), train={"max_steps": 2, "seed": seed}))["test"]["loss"]
        for run, seed in enumerate((5, 5, 6))
    )
    assert first == second != other


def test_check_shows_samples_and_one_step_and_writes_nothing(
    classify: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classify.check(make_config(classify, tmp_path / "run"))
    text = capsys.readouterr().out
    assert text.count("sample ") == 3
    for part in ("class '", "image (3, ", "one step: loss", "grad_norm", "peak memory: ", "MiB"):
        assert part in text
    assert not (tmp_path / "run").exists()


def test_it_runs_as_a_script(classify: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "few.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    classify.main([str(path), "train.epochs=1", f"output={tmp_path / 'out'}"])
    assert "'test': {'accuracy'" in capsys.readouterr().out
    assert (tmp_path / "out" / "metrics.json").is_file()


def test_a_run_on_a_base_in_4_bits(classify: Any, tmp_path: Path) -> None:
    config = make_config(classify, tmp_path / "run", model={"name": "tiny/vit", "quantize": "nf4"})
    metrics = classify.run(config)
    assert classify.evaluate(config) == pytest.approx(metrics["test"])
    model = classify.build(config.model_copy(update={"output": tmp_path / "other"}))[0].model
    assert is_quantized(model.blocks[0].mlp.fc1.weight)


def test_a_memory_level_changes_no_number(classify: Any, tmp_path: Path) -> None:
    """The losses agree to the bit; the level is that of the model, which the prefix cache leaves alone."""
    train = {"max_steps": 3, "batch_size": 8, "cache": "off"}
    runs = [make_config(classify, tmp_path / level, train=train, memory=level) for level in ("standard", "leanest")]
    standard, leanest = (classify.run(config)["test"]["loss"] for config in runs)
    assert standard == leanest
    assert (
        classify.build(runs[1].model_copy(update={"output": tmp_path / "other"}))[0].model._graft.now().level
        == "leanest"
    )
