"""Few shots and base to new end to end, on the embedded CLIP, in a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mmpeft
from mmpeft.cli.shipped import find_task, load_task

SETTINGS: dict[str, Any] = {
    "task": "vlm/few_shot",
    "model": "tiny/clip",
    "adapters": {"main": {"method": "coop", "tokens": 4, "init": "a photo of a"}},
    "data": {"name": "scenes", "style": "neon", "shots": 4, "test": 6, "verify": False},
    "train": {"epochs": 4, "batch_size": 16, "lr": 5e-2},
}


@pytest.fixture(scope="module")
def few_shot() -> Any:
    return load_task(find_task("vlm/few_shot"))


@pytest.fixture(scope="module")
def base_to_new() -> Any:
    return load_task(find_task("vlm/base_to_new"))


def make_config(script: Any, output: Path, **changes: Any) -> Any:
    return script.Config.model_validate({**SETTINGS, "output": str(output), **changes})


def test_a_run_beats_the_frozen_model_and_loads_anywhere(few_shot: Any, tmp_path: Path) -> None:
    config = make_config(few_shot, tmp_path / "run")
    metrics = few_shot.run(config)
    assert metrics["test"]["accuracy"] > metrics["frozen"]["accuracy"] + 0.05
    assert few_shot.evaluate(config) == pytest.approx(metrics["test"])
    card = (config.output / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    scope: dict[str, Any] = {}
    exec(code.replace('"adapter"', f'"{config.output / "adapter"}"'), scope)
    shares = few_shot.predict(config, 3).shares
    assert sum(shares.values()) == pytest.approx(1)
    with torch.no_grad():
        logits = scope["model"](few_shot.load_adapted(config).data.test[3]["image"][None])
    assert dict(zip(shares, logits.softmax(-1)[0].tolist(), strict=True)) == pytest.approx(shares, abs=1e-4)
    bare = mmpeft.load_model("tiny/clip")
    assert mmpeft.load(bare, config.output / "adapter").methods()[0].ids is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize("trained", [False, True])
def test_a_cache_is_filled_and_tuned_on_validation(few_shot: Any, tmp_path: Path, trained: bool) -> None:
    tip = {"main": {"method": "tip_adapter", "shots": 4, "trained": trained}}
    train = {"epochs": 3, "batch_size": 16, "lr": 3e-3}
    config = make_config(few_shot, tmp_path / "run", adapters=tip, train=train, cache_views=2)
    metrics = few_shot.run(config)
    assert metrics["test"]["accuracy"] > metrics["frozen"]["accuracy"] + 0.1
    assert metrics["trainable_parameters"] == (4 * 12 * 128 if trained else 0)
    (edit,) = few_shot.load_adapted(config).model._modules["mmpeft"].active_edits()
    assert 0 < edit.alpha <= 10
    assert 0 < edit.beta <= 10
    assert edit.values.sum() == 48
    assert few_shot.evaluate(config) == pytest.approx(metrics["test"])


def test_shots_and_seeds_are_repeated_and_resumed(few_shot: Any, tmp_path: Path) -> None:
    tip = {"main": {"method": "tip_adapter", "shots": 4}}
    config = make_config(few_shot, tmp_path / "run", adapters=tip, train={"epochs": 1}, shots=[1, 4], seeds=[1, 2])
    metrics = few_shot.run(config)
    runs = {path.name for path in config.output.iterdir() if path.is_dir()}
    assert runs == {f"shots_{k}_seed_{s}" for k in (1, 4) for s in (1, 2)}
    scores = [
        json.loads((config.output / name / "metrics.json").read_text())["test"]["accuracy"] for name in sorted(runs)
    ]
    assert metrics["by_shots"]["4"]["test"]["accuracy"]["mean"] == pytest.approx(sum(scores[2:]) / 2)
    assert metrics["by_shots"]["1"]["test"]["accuracy"]["std"] == pytest.approx(abs(scores[0] - scores[1]) / 2)
    assert metrics["test"]["accuracy"] == pytest.approx(sum(scores[2:]) / 2)
    before = (config.output / "shots_4_seed_2" / "metrics.json").stat().st_mtime_ns
    (config.output / "metrics.json").unlink()
    assert few_shot.run(config) == metrics
    assert (config.output / "shots_4_seed_2" / "metrics.json").stat().st_mtime_ns == before


def test_base_to_new_tests_both_halves(base_to_new: Any, tmp_path: Path) -> None:
    config = make_config(base_to_new, tmp_path / "run", task="vlm/base_to_new", seeds=[1, 2])
    metrics = base_to_new.run(config)
    one = json.loads((config.output / "seed_1" / "metrics.json").read_text())
    base, new = one["test"]["base"], one["test"]["new"]
    assert one["test"]["harmonic_mean"] == pytest.approx(2 * base * new / (base + new))
    assert base > one["frozen"]["base"]
    means = metrics["test"]
    both = 2 * means["base"] * means["new"] / (means["base"] + means["new"])
    assert means["harmonic_mean_of_means"] == pytest.approx(both)
    said = base_to_new.predict(config.model_copy(update={"output": config.output / "seed_1", "seeds": ()}), 0)
    assert len(said.shares) == 6
    assert said.sample.label in said.shares


@pytest.mark.parametrize("method", ["linear_probe", "tip_adapter", {"method": "coop", "class_specific": True}])
def test_base_to_new_refuses_what_knows_no_new_classes(base_to_new: Any, tmp_path: Path, method: Any) -> None:
    config = make_config(base_to_new, tmp_path / "run", task="vlm/base_to_new", adapters={"main": method})
    with pytest.raises(ValueError, match="learns the classes themselves"):
        base_to_new.run(config)
    assert not config.output.exists()
