"""Pictures that follow a control image: ControlNet and T2I-Adapter.

mmpeft train diffusion/controlnet_scenes
mmpeft predict runs/controlnet_scenes --index 3
accelerate launch tasks/diffusion/control.py configs/diffusion/controlnet_sd15.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pydantic import model_validator

from mmpeft.assembly.diffusion_config import DiffusionConfig
from mmpeft.assembly.task import Task

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class Config(DiffusionConfig):
    """One run of learning to be controlled."""

    @model_validator(mode="after")
    def _has_control(self) -> Config:
        if self.data.control is None and self.data.control_path is None:
            raise ValueError(
                "data.control: missing; edges or mask, or data.control_path with an image for each picture"
            )
        return self


def assemble(config: Config) -> Parts:
    """Load the pipeline, and the pictures with their texts and control images."""
    from mmpeft.assembly import diffusion

    return diffusion.assemble(config)


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
