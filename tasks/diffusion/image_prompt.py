"""Pictures that look like a given one: IP-Adapter.

mmpeft train diffusion/ip_adapter_scenes
mmpeft predict runs/ip_adapter_scenes prompt="" --index 3
accelerate launch tasks/diffusion/image_prompt.py configs/diffusion/ip_adapter_sd15.yaml
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mmpeft
from mmpeft.assembly import diffusion, task
from mmpeft.assembly.diffusion_config import DiffusionConfig
from mmpeft.data.transforms import make_transforms
from mmpeft.heads.image_encoder import ImageEncoder


class Config(DiffusionConfig):
    """One run of learning to follow image prompts."""

    image_encoder: str
    """What turns image prompts into features: ``tiny/clip``, or ``hf/OWNER/NAME`` of a CLIP vision model."""


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: losses with the adapter, and without (frozen)."""
    return diffusion.run(config, encoder(config), frozen=True)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step."""
    diffusion.check(config, encoder(config))


def evaluate(config: Config) -> dict[str, float]:
    """Return the test loss of the adapter in the run directory of a finished run."""
    return diffusion.evaluate(config, encoder(config))


def predict(config: Config, index: int) -> Path:
    """Draw ``prompt``, or the text of a test picture, with that picture as image prompt; return the PNG."""
    return diffusion.predict(config, index, encoder(config))


def encoder(config: Config) -> diffusion.Encoder:
    """Load the image encoder, and how it wants its pictures; all positions where an adapter has a resampler."""
    methods = [method for own in config.adapters.values() for method in own]
    positions = any(getattr(method, "resampler", False) for method in methods)
    model = mmpeft.load_model(config.image_encoder)
    _, transform = make_transforms(config.data, model)
    return ImageEncoder(model, positions=positions), transform


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
