"""A run on a merged base, from its configuration to its card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import mmpeft
from mmpeft.cli.shipped import find_task, load_task

SETTINGS: dict[str, Any] = {
    "task": "vision/classify",
    "model": "tiny/vit",
    "adapters": {"main": {"method": "lora", "rank": 2}},
    "data": {"name": "digits", "per_class": 2, "validation": 1, "test": 1},
    "train": {"max_steps": 1, "batch_size": 8, "lr": 3e-3},
}


def test_a_run_on_a_merged_base_says_so_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = load_task(find_task("vision/classify"))
    model = mmpeft.load_model("tiny/vit", num_classes=10)
    mmpeft.adapt(model, mmpeft.LoRA(rank=2), name="main").save("first")
    base = {"name": "tiny/vit", "merged": ["first"]}
    config = task.Config.model_validate(SETTINGS | {"model": base, "output": "second"})
    metrics = task.run(config)
    assert task.evaluate(config) == pytest.approx(metrics["test"])
    plain = mmpeft.load_model("tiny/vit", num_classes=10)
    with pytest.raises(ValueError, match="was made on a base with first"):
        mmpeft.load(plain, "second/adapter")
    recipe = Path("second/README.md").read_text().partition("```python\n")[2].partition("```")[0]
    assert 'mmpeft.load(model, "first").merge_and_unload()' in recipe
    scope: dict[str, Any] = {}
    exec(recipe.replace('"adapter"', '"second/adapter"'), scope)
    assert mmpeft.adapters(scope["model"]).active == {"main": 1.0}
