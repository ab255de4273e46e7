"""Pictures that a model draws while it is trained: always of the same noise, looked at before they are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from mmpeft.files import replaced_file
from mmpeft.training.random_state import seeded

DARK = 0.02
"""A picture is black if no value of it, from 0 to 1, is larger."""


@dataclass(frozen=True)
class Preview:
    """Calls ``draw`` every ``every`` steps and after the last, and writes its pictures (n, 3, height, width)."""

    draw: Callable[[], Tensor]
    every: int
    names: tuple[str, ...]
    """What each picture is of, for trackers and warnings."""

    def is_due(self, step: int, *, last: bool) -> bool:
        """Tell whether pictures are wanted after this step."""
        return last or step % self.every == 0

    def show(self, directory: Path, step: int, accelerator: Accelerator) -> tuple[dict[str, Any], str]:
        """Write a grid to ``samples/step_N.png`` and the trackers; return what to log, and a warning or nothing."""
        with seeded(0):
            pictures = self.draw().float().cpu()
        path = Path("samples") / f"step_{step}.png"
        black, broken = faults(pictures)
        grid = grid_of(pictures)
        if accelerator.is_main_process:
            save_picture(grid, directory / path)
            _track(np.asarray(grid), step, accelerator)
        record = {"pictures": str(path), "black": len(black), "nan": len(broken)}
        kinds = (("black", black), ("not all numbers (NaN)", broken))
        said = [f"{', '.join(repr(self.names[i]) for i in which)} {kind}" for kind, which in kinds if which]
        return record, f"  WARNING: {'; '.join(said)}" if said else ""


def faults(pictures: Tensor) -> tuple[list[int], list[int]]:
    """Return which pictures are black, and which are not all numbers."""
    flat = pictures.flatten(1)
    broken = [index for index, picture in enumerate(flat) if not picture.isfinite().all()]
    return [i for i, picture in enumerate(flat) if i not in broken and picture.max() <= DARK], broken


def grid_of(pictures: Tensor) -> Image.Image:
    """Return pictures (n, 3, height, width) in [0, 1] in rows, about as many as columns; NaN is black."""
    count, _, height, width = pictures.shape
    columns = int(np.ceil(count**0.5))
    rows = -(-count // columns)
    canvas = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures.nan_to_num(0.0).clamp(0, 1)):
        top, left = index // columns * height, index % columns * width
        values = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        canvas[top : top + height, left : left + width] = values
    return Image.fromarray(canvas)


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture as PNG, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def _track(grid: np.ndarray, step: int, accelerator: Accelerator) -> None:
    """Hand the grid to the trackers that take pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"samples": grid[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"samples": [grid]}, step=step)
