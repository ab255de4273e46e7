"""Pictures that follow a control image: ControlNet and T2I-Adapter.

mmpeft train diffusion/controlnet_scenes
mmpeft predict runs/controlnet_scenes --index 3
accelerate launch tasks/diffusion/control.py configs/diffusion/controlnet_sd15.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import model_validator

from mmpeft.assembly import diffusion, task
from mmpeft.assembly.diffusion_config import DiffusionConfig


class Config(DiffusionConfig):
    """One run of learning to be controlled."""

    @model_validator(mode="after")
    def _has_control(self) -> Config:
        if self.data.control is None and self.data.control_path is None:
            raise ValueError(
                "data.control: missing; edges or mask, or data.control_path with an image for each picture"
            )
        return self


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: losses with the adapter, and without (frozen)."""
    return diffusion.run(config, frozen=True)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step."""
    diffusion.check(config)


def evaluate(config: Config) -> dict[str, float]:
    """Return the test loss of the adapter in the run directory of a finished run."""
    return diffusion.evaluate(config)


def predict(config: Config, index: int) -> Path:
    """Draw ``prompt``, or the text of a test picture, laid out by its control image; return the PNG."""
    return diffusion.predict(config, index)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
