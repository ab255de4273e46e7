"""Pictures that look like a given one: IP-Adapter.

mmpeft train diffusion/ip_adapter_scenes
mmpeft predict runs/ip_adapter_scenes prompt="" --index 3
accelerate launch tasks/diffusion/image_prompt.py configs/diffusion/ip_adapter_sd15.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import mmpeft
from mmpeft.assembly.diffusion_config import DiffusionConfig
from mmpeft.assembly.task import Task

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class Config(DiffusionConfig):
    """One run of learning to follow image prompts."""

    image_encoder: str
    """What turns image prompts into features: ``tiny/clip``, or ``hf/OWNER/NAME`` of a CLIP vision model."""


def assemble(config: Config) -> Parts:
    """Load the pipeline, the pictures, and the encoder: all its positions where an adapter has a resampler."""
    from mmpeft.assembly import diffusion
    from mmpeft.data.transforms import make_transforms
    from mmpeft.heads.image_encoder import ImageEncoder

    methods = [method for several in config.adapters.values() for method in several]
    positions = any(getattr(method, "resampler", False) for method in methods)
    encoder = mmpeft.load_model(config.image_encoder)
    _, transform = make_transforms(config.data, encoder)
    return diffusion.assemble(config, (ImageEncoder(encoder, positions=positions), transform))


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
