"""Retrieval end to end: pictures of bars with captions, and a two-tower model that has never been trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mmpeft.zoo
from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task

WORDS = ["<none>", "a", "red", "green", "blue", "bar", "left", "middle", "right", "at", "the", "in", "<end>"]


def tokenizer(texts: list[str]) -> torch.Tensor:
    rows = [[*(WORDS.index(word) for word in text.split()), WORDS.index("<end>")] for text in texts]
    return torch.tensor([row + [0] * (9 - len(row)) for row in rows])


def two_towers(*_: Any, **__: Any) -> Any:
    from open_clip.model import CustomTextCLIP

    torch.manual_seed(0)
    size = {"layers": 2, "width": 32}
    vision = {"image_size": 32, "patch_size": 8, "head_width": 16, **size}
    model = CustomTextCLIP(16, vision, {"context_length": 9, "vocab_size": len(WORDS), "heads": 2, **size})
    model.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return model.eval()


@pytest.fixture(autouse=True)
def _no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmpeft, "load_model", two_towers)
    monkeypatch.setattr(mmpeft.zoo, "load_tokenizer", lambda source: tokenizer, raising=False)


@pytest.fixture
def retrieval() -> Any:
    return load_task(find_task("vlm/retrieval"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, captions = tmp_path_factory.mktemp("bars"), {}
    for number in range(45):
        colour, place = number % 3, number // 3 % 3
        image = np.random.default_rng(number).integers(0, 60, (32, 32, 3))
        image[:, place * 11 : place * 11 + 10, colour] = 250
        Image.fromarray(image.astype(np.uint8)).save(root / f"{number:02d}.png")
        where = "in the middle" if place == 1 else f"at the {'left' if place == 0 else 'right'}"
        said = f"a {WORDS[2 + colour]} bar {where}"
        captions[f"{number:02d}.png"] = [said, f"{where} a {WORDS[2 + colour]} bar"]
    (root / "captions.json").write_text(json.dumps(captions))
    return root


def make_config(retrieval: Any, folder: Path, output: Path, **changes: Any) -> Any:
    settings = {
        "task": "vlm/retrieval",
        "model": "tiny/clip",
        "adapters": {"main": {"method": "lora", "rank": 8, "targets": "all"}},
        "data": {"name": "captions", "path": str(folder), "validation": 9, "test": 9},
        "train": {"epochs": 12, "batch_size": 9, "lr": 1e-2, "evaluate_every": 4},
        "output": str(output),
    }
    return retrieval.Config.model_validate({**settings, **changes})


def test_a_run_learns_is_evaluated_and_answers(
    retrieval: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(retrieval, folder, tmp_path / "run")
    metrics = retrieval.run(config)
    ways = [f"{way}_recall_{depth}" for way in ("image_to_text", "text_to_image") for depth in (1, 5, 10)]
    for split in ("validation", "test", "frozen"):
        assert list(metrics[split]) == ["mean_recall", *ways]
    assert metrics["test"]["mean_recall"] > metrics["frozen"]["mean_recall"] + 0.1
    assert "| test, without the adapter | " in (config.output / "README.md").read_text()
    assert json.loads((config.output / "metrics.json").read_text()) == metrics
    assert retrieval.evaluate(config) == pytest.approx(metrics["test"])

    capsys.readouterr()
    assert main(["predict", str(config.output), "--index", "2"]) == 0
    assert " bar" in capsys.readouterr().out.splitlines()[-1]
    assert sum(retrieval.predict(config, 2).shares.values()) == pytest.approx(1, abs=1e-4)
    asked = config.model_copy(update={"query": "a red bar at the left"})
    found = retrieval.predict(asked, 0)
    sample, likely = found.sample, found.shares
    assert max(likely, key=lambda name: likely[name]) == sample.id
    assert sum(likely.values()) == pytest.approx(1, abs=1e-4)


def test_every_caption_is_asked_for_in_evaluation(retrieval: Any, folder: Path, tmp_path: Path) -> None:
    data = retrieval.assemble(make_config(retrieval, folder, tmp_path)).data
    assert (data.train.most, data.val.most, data.test.most) == (1, 2, 2)


@pytest.mark.parametrize("towers", ["vision", "text"])
def test_one_tower_alone_can_be_adapted(retrieval: Any, folder: Path, tmp_path: Path, towers: str) -> None:
    adapters = {"main": {"method": "lora", "rank": 2, "towers": towers}}
    trainer, _ = retrieval.build(make_config(retrieval, folder, tmp_path, adapters=adapters))
    assert trainer.try_step(trainer.first_window())["grad_norm"] > 0


@pytest.mark.parametrize("towers", ["vision", "text", "all"])
def test_the_cache_of_the_frozen_prefix_changes_no_number(
    retrieval: Any, folder: Path, tmp_path: Path, towers: str
) -> None:
    (tmp_path / "one.json").write_text(
        json.dumps({name: texts[0] for name, texts in json.loads((folder / "captions.json").read_text()).items()})
    )
    data = {"name": "captions", "path": str(folder), "caption_path": str(tmp_path / "one.json")}
    adapters = {"main": {"method": "lora", "rank": 2, "layers": "last:1", "towers": towers}}
    found = {}
    for store in ("auto", "off"):
        train = {"epochs": 3, "batch_size": 9, "lr": 1e-2, "cache": {"store": store}}
        config = make_config(retrieval, folder, tmp_path / store, adapters=adapters, data=data, train=train)
        found[store] = retrieval.run(config)
    assert found["auto"]["prefix_cache"]["store"] == "memory"
    assert found["auto"]["test"] == pytest.approx(found["off"]["test"])


def test_the_sigmoid_loss_needs_a_bias(retrieval: Any, folder: Path, tmp_path: Path) -> None:
    trainer, _ = retrieval.build(make_config(retrieval, folder, tmp_path, loss="siglip"))
    with pytest.raises(ValueError, match="loss: 'siglip' needs a model with a logit bias"):
        trainer.try_step(trainer.first_window())


def test_check_shows_captions_and_writes_nothing(
    retrieval: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    retrieval.check(make_config(retrieval, folder, tmp_path / "run"))
    text = capsys.readouterr().out
    assert text.count(" bar") >= 3
    assert "one step: loss" in text
    assert "batch_accuracy" in text
    assert not (tmp_path / "run").exists()
