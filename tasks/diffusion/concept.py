"""New concepts from a few pictures: DreamBooth, Textual Inversion and Custom Diffusion are configurations of it.

mmpeft train diffusion/custom_diffusion_scenes
mmpeft predict runs/custom_diffusion_scenes prompt="a blue <new1>"
accelerate launch tasks/diffusion/concept.py configs/diffusion/dreambooth_lora_sdxl.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import model_validator

from mmpeft.assembly import diffusion, task
from mmpeft.assembly.diffusion_config import DiffusionConfig


class Config(DiffusionConfig):
    """One run of learning concepts."""

    @model_validator(mode="after")
    def _has_concepts(self) -> Config:
        if self.data.name != "concepts":
            raise ValueError(f"data.name: {self.data.name!r}: this task learns name: concepts; lora takes captions")
        return self


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics; the losses are those of the training pictures, plain."""
    return diffusion.run(config)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step."""
    diffusion.check(config)


def evaluate(config: Config) -> dict[str, float]:
    """Return the loss of the concepts' pictures by the adapter in the run directory of a finished run."""
    return diffusion.evaluate(config)


def predict(config: Config, index: int) -> Path:
    """Draw ``prompt``, or the text of a concept's picture, and return the PNG in the run directory."""
    return diffusion.predict(config, index)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
