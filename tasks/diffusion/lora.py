"""Styles and subjects from pictures with captions: LoRA, and any other method that needs no image beside the text.

mmpeft train diffusion/lora_scenes
mmpeft predict runs/lora_scenes prompt="a large red star"
accelerate launch tasks/diffusion/lora.py configs/diffusion/lora_sd15.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mmpeft.assembly import diffusion, task
from mmpeft.assembly.diffusion_config import DiffusionConfig


class Config(DiffusionConfig):
    """One run of text-to-image adaptation."""


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
    """Draw ``prompt``, or the text of a test picture, and return the PNG in the run directory."""
    return diffusion.predict(config, index)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
