"""Styles and subjects from pictures with captions: LoRA, and any other method that needs no image beside the text.

mmpeft train diffusion/lora_scenes
mmpeft predict runs/lora_scenes prompt="a large red star"
accelerate launch tasks/diffusion/lora.py configs/diffusion/lora_sd15.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mmpeft.assembly.diffusion_config import DiffusionConfig
from mmpeft.assembly.task import Task

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class Config(DiffusionConfig):
    """One run of text-to-image adaptation."""


def assemble(config: Config) -> Parts:
    """Load the pipeline, and the pictures with their texts."""
    from mmpeft.assembly import diffusion

    return diffusion.assemble(config)


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
