"""The protocols' configurations run from end to end: the embedded model on small folders in the benchmarks' layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmpeft import load_model
from mmpeft.cli.run import load_run
from mmpeft.cli.shipped import configs

FASTER = ("model=tiny/vit", "train.epochs=2", "train.warmup_epochs=1", "train.batch_size=8", "train.workers=0")


def run(name: str, *overrides: str) -> dict[str, Any]:
    task, config, _ = load_run(configs()[name], [*FASTER, *overrides])
    return task.run(config)


def pictures(folder: Path, split: str, count: int, classes: int) -> dict[str, int]:
    """Write grey pictures, lighter from class to class, and return their labels by path."""
    labels = {f"images/{split}/{number}.png": number % classes for number in range(count)}
    for path, label in labels.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (40, 30), 200 * label // classes).save(folder / path)
    return labels


@pytest.fixture
def vtab(tmp_path: Path) -> Path:
    folder, lists = tmp_path / "vtab-1k" / "patch_camelyon", {}
    for split, count in (("train800", 16), ("val200", 8), ("test", 8)):
        lists[split] = [f"{path} {label}" for path, label in pictures(folder, split, count, 2).items()]
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return tmp_path


def test_vtab_is_tuned_on_800_and_then_trained_on_all(vtab: Path) -> None:
    data = (f"data.path={vtab / 'vtab-1k'}", "data.dataset=patch_camelyon")
    tuned = run("vision/vtab_adaptformer", *data, f"output={vtab / 'tune'}")
    final = run(
        "vision/vtab_adaptformer", *data, f"output={vtab / 'final'}", "data.validation=null", "train.monitor=null"
    )
    assert (tuned["steps"], final["steps"]) == (4, 6)
    assert "on the validation split" in tuned["selected"]
    assert final["selected"] == "step 6, the last one, whatever its scores"
    rates = [json.loads(line)["lr"] for line in (vtab / "final" / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-6] * 3 + [1e-5 + (1e-3 - 1e-5) / 2] * 3)


def test_fgvc_with_visual_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "fgvc" / "stanford_dogs"
    for split in ("train", "val", "test"):
        labels = pictures(folder / "Images", split, 120, 120)
        (folder / f"{split}.json").write_text(json.dumps(labels))
    metrics = run(
        "vision/fgvc_vpt", f"data.path={tmp_path / 'fgvc'}", "data.dataset=dogs", f"output={tmp_path / 'run'}",
        "train.batch_size=64",
    )  # fmt: skip
    rates = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["lr"] for record in rates if record["split"] == "train"] == pytest.approx([0, 0, 1.25, 1.25])
    sketch = load_model("tiny/vit", device="meta")
    prompts, head = 10 * len(sketch.blocks) * sketch.embed_dim, (sketch.embed_dim + 1) * 120
    assert metrics["trainable_parameters"] == prompts + head
