"""New concepts from a few pictures: DreamBooth, Textual Inversion and Custom Diffusion are configurations of it.

mmpeft train diffusion/custom_diffusion_scenes
mmpeft predict runs/custom_diffusion_scenes prompt="a blue <new1>"
accelerate launch tasks/diffusion/concept.py configs/diffusion/dreambooth_lora_sdxl.yaml
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import model_validator

from mmpeft.assembly.diffusion_config import DiffusionConfig
from mmpeft.assembly.task import Task

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class Config(DiffusionConfig):
    """One run of learning concepts."""

    @model_validator(mode="after")
    def _has_concepts(self) -> Config:
        if self.data.name != "concepts":
            raise ValueError(f"data.name: {self.data.name!r}: this task learns name: concepts; lora takes captions")
        return self


def assemble(config: Config) -> Parts:
    """Load the pipeline, and the pictures of the concepts; losses are those of the training pictures."""
    from mmpeft.assembly import diffusion

    return replace(diffusion.assemble(config), frozen=False)


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
