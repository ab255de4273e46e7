from pathlib import Path

from PIL import Image

from mmpeft.training.run.curves import draw_curves


def test_one_panel_per_value(tmp_path: Path) -> None:
    records = [
        {"step": 1, "epoch": 0.5, "split": "train", "loss": 2.0, "lr": 0.1},
        {"step": 2, "epoch": 1.0, "split": "train", "loss": None, "lr": 0.1},
        {"step": 2, "epoch": 1.0, "split": "validation", "loss": 1.5, "accuracy": 0.5},
    ]
    draw_curves(records, tmp_path / "three.png")
    draw_curves(records[:1], tmp_path / "two.png")
    three, two = (Image.open(tmp_path / name) for name in ("three.png", "two.png"))
    assert three.size[0] * 2 == two.size[0] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["three.png", "two.png"]
