"""Segmentation end to end, on a folder of the user's own, in a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmpeft
from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task
from mmpeft.heads.segmentation import Segmenter


@pytest.fixture(scope="module")
def segment() -> Any:
    return load_task(find_task("vision/segment"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 32 pixels with a bright quarter, which is the class ``box``."""
    root, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir()
    for number in range(40):
        mask = np.zeros((32, 32), dtype=np.uint8)
        row, column = random.integers(0, 2, 2) * 16
        mask[row : row + 16, column : column + 16] = 1
        image = random.integers(0, 60, (32, 32, 3)) + 150 * mask[..., None]
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(root / "masks" / f"{number:02d}.png")
    (root / "masks" / "classes.txt").write_text("ground\nbox\n")
    return root


def make_config(segment: Any, folder: Path, output: Path, **changes: Any) -> Any:
    settings = {
        "task": "vision/segment",
        "model": "tiny/vit",
        "adapters": {"main": {"method": "lora", "rank": 2}},
        "data": {"name": "masks", "path": str(folder / "images"), "mask_path": str(folder / "masks")},
        "train": {"epochs": 4, "batch_size": 8, "lr": 1e-2},
        "output": str(output),
    }
    return segment.Config.model_validate({**settings, **changes})


def test_a_run_learns_is_evaluated_and_predicts(
    segment: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(segment, folder, tmp_path / "run", decoder="conv", blocks=[2, 5], decoder_width=16)
    metrics = segment.run(config)
    assert set(metrics["validation"]) == set(metrics["test"]) == {"miou", "pixel_accuracy", "loss"}
    assert metrics["test"]["miou"] > 0.6  # all ground would have 0.375
    assert "for its miou on the validation split" in metrics["selected"]
    assert json.loads((config.output / "metrics.json").read_text()) == metrics
    assert segment.evaluate(config) == pytest.approx(metrics["test"])

    capsys.readouterr()
    assert main(["predict", str(config.output), "--index", "3"]) == 0
    said = capsys.readouterr().out
    assert f"picture: {config.output / 'prediction_3.png'}" in said
    assert "says ground (" in said
    assert (config.output / "prediction_3.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_card_says_how_to_load_it(segment: Any, folder: Path, tmp_path: Path) -> None:
    config = make_config(segment, folder, tmp_path / "run", train={"max_steps": 1})
    segment.run(config)
    card = (config.output / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace('"adapter"', repr(str(config.output / "adapter")))
    names: dict[str, Any] = {}
    exec(code, names)
    assert isinstance(names["model"], Segmenter)
    assert mmpeft.adapters(names["model"]).names == ["main"]


@pytest.mark.parametrize("method", ["linear_probe", "adaptformer", "full_fine_tuning"])
def test_the_decoder_is_trained_beside_every_method(segment: Any, folder: Path, tmp_path: Path, method: str) -> None:
    trainer, _ = segment.build(make_config(segment, folder, tmp_path, adapters={"main": method}))
    names = [name for name, _ in trainer.adapters.named_parameters() if "task" in name]
    assert len(names) == 2
    assert trainer.try_step(trainer.first_window())["grad_norm"] > 0


def test_check_shows_shares_and_writes_nothing(
    segment: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment.check(make_config(segment, folder, tmp_path / "run"))
    text = capsys.readouterr().out
    assert text.count("ground 75%, box 25%, image (3, 32, 32)") == 3
    assert "one step: loss" in text
    assert not (tmp_path / "run").exists()


def test_a_sample_that_is_not_there(segment: Any, folder: Path, tmp_path: Path) -> None:
    config = make_config(segment, folder, tmp_path / "run", train={"max_steps": 1})
    segment.run(config)
    with pytest.raises(ValueError, match="index: 8 is not among the 8 test samples"):
        segment.predict(config, 8)


def test_one_class_alone_is_nothing_to_learn(segment: Any, folder: Path, tmp_path: Path) -> None:
    """It would train to a perfect score, whatever the masks say."""
    data = {"name": "masks", "path": str(folder / "images"), "mask_path": str(tmp_path)}
    for mask in (folder / "masks").glob("*.png"):
        Image.fromarray(np.zeros((32, 32), dtype=np.uint8)).save(tmp_path / mask.name)
    for names, message in ((["ground"], "is of one class, 'ground'"), (["ground", "box"], "is of one class, 'ground'")):
        with pytest.raises(ValueError, match=message):
            segment.build(make_config(segment, folder, tmp_path / "run", data=data | {"classes": names}))
    with pytest.raises(ValueError, match="has one class, 'ground'"):
        segment.build(
            make_config(segment, folder, tmp_path / "run", data=data | {"classes": ["ground"], "verify": False})
        )
