from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_program import make_trainer, weights

from mmpeft.training.preview import Preview, faults, grid_of
from mmpeft.training.trainer import Trainer


def with_preview(output: Path, preview: Preview | None, **settings: object) -> Trainer:
    trainer = make_trainer(output, epochs=1, dropout=0.2, **settings)
    trainer.preview = preview
    trainer.fit()
    return trainer


def test_pictures_at_intervals_change_nothing_in_the_training(tmp_path: Path) -> None:
    modes: list[bool] = []

    def draw() -> torch.Tensor:
        modes.append(trainer_model.training)
        torch.rand(3)
        return torch.full((3, 3, 4, 6), 0.5)

    plain = with_preview(tmp_path / "plain", None)
    trainer = make_trainer(tmp_path / "run", epochs=1, dropout=0.2)
    trainer_model = trainer.model
    trainer.preview = Preview(draw, 4, ("a", "b", "c"))
    trainer.fit()
    assert all(torch.equal(value, weights(trainer)[name]) for name, value in weights(plain).items())
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["step_4.png", "step_6.png"]
    records = [record for record in trainer.directory.records() if record["split"] == "preview"]
    assert [record["step"] for record in records] == [4, 6]
    assert records[0] == {"step": 4, "epoch": 0.6667, "split": "preview", "pictures": "samples/step_4.png",
                          "black": 0, "nan": 0}  # fmt: skip
    assert modes == [False, False]


def test_the_average_draws(tmp_path: Path) -> None:
    seen = []
    trainer = make_trainer(tmp_path, epochs=1, ema=0.5)

    def draw() -> torch.Tensor:
        seen.append(weights(trainer))
        return torch.ones(1, 3, 2, 2)

    trainer.preview = Preview(draw, 100, ("a",))
    trainer.fit()
    assert trainer.average is not None
    for name, value in trainer.average.values.items():
        torch.testing.assert_close(seen[0][name], value)


def test_a_black_and_a_broken_picture_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = torch.rand(3, 3, 4, 4)
    pictures[0] = 0.01
    pictures[2, 1, 2, 2] = float("nan")
    assert faults(pictures) == ([0], [2])
    trainer = with_preview(tmp_path, Preview(lambda: pictures, 100, ("a cat", "a dog", "a cup")))
    said = capsys.readouterr()
    assert "WARNING: 'a cat' black; 'a cup' not all numbers (NaN)" in said.out + said.err
    record = trainer.directory.records()[-2]
    assert (record["split"], record["black"], record["nan"]) == ("preview", 1, 1)


def test_a_grid_has_every_picture() -> None:
    pictures = torch.stack([torch.full((3, 2, 4), i / 10) for i in range(5)])
    grid = np.asarray(grid_of(pictures))
    assert grid.shape == (4, 12, 3)
    assert [int(grid[top, left, 0]) for top in (0, 2) for left in (0, 4, 8)] == [0, 26, 51, 76, 102, 255]


def test_tensorboard_gets_the_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with_preview(tmp_path, Preview(lambda: torch.rand(2, 3, 8, 8), 3, ("a", "b")), trackers=("tensorboard",))
    events = EventAccumulator(str(next(tmp_path.rglob("events*")).parent), size_guidance={"images": 0}).Reload()
    assert [event.step for event in events.Images("samples")] == [3, 6]
    assert Image.open(tmp_path / "samples" / "step_3.png").size == (16, 8)
