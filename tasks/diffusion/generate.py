"""Pictures from a model and finished adapters, several at once, each with its scale, control image or image prompt.

mmpeft train diffusion/generate_tiny prompts="[a large red star]" output=pictures
python tasks/diffusion/generate.py configs/diffusion/generate_tiny.yaml sampling.steps=50
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PositiveInt, model_validator

import mmpeft
from mmpeft.assembly.diffusion_config import Loaded, Sampling
from mmpeft.assembly.task import run_script
from mmpeft.kernels.backends import Backend
from mmpeft.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor


class Config(Settings):
    """What to draw with what."""

    task: str
    """``diffusion/generate``."""
    model: str
    """The pipeline: ``tiny/sd``, ``diffusers/OWNER/NAME`` or a local folder."""
    load: dict[str, Loaded] = Field(default={})
    """Finished adapters by name, in the order in which they apply."""
    image_encoder: str | None = None
    """Of image prompts: ``tiny/clip``, or ``hf/OWNER/NAME`` of a CLIP vision model."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    """What to draw."""
    count: PositiveInt = 1
    """Pictures of each prompt."""
    resolution: PositiveInt | None = None
    """Height and width in pixels; null takes what the denoiser was trained with."""
    sampling: Sampling = Sampling()
    """How to draw."""
    attention: Backend = "auto"
    """The kernel of the pipeline's attention; ``auto`` is diffusers' own way, ``xformers`` needs that extra."""
    output: Path
    """The folder for the pictures and their prompts: class pictures, say, for prior preservation. A grid of all is
    beside it."""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.image_encoder is None and any(adapter.image for adapter in self.load.values()):
            raise ValueError("image_encoder: missing; image prompts need one")
        return self


def run(config: Config) -> None:
    """Draw, and write ``0000.png`` ..., ``metadata.csv`` and the grid; black and broken pictures are named."""
    from mmpeft.training.preview import faults, grid_of, save_picture

    asked = [prompt for prompt in config.prompts for _ in range(config.count)]
    pictures = draw(config, asked)
    for number, picture in enumerate(pictures):
        save_picture(grid_of(picture[None]), config.output / f"{number:04d}.png")
    with (config.output / "metadata.csv").open("w", encoding="utf-8", newline="") as lines:
        table = csv.writer(lines)
        table.writerow(("file_name", "text"))
        table.writerows((f"{number:04d}.png", prompt) for number, prompt in enumerate(asked))
    grid = config.output.parent / f"{config.output.name}.png"
    save_picture(grid_of(pictures), grid)
    for what, which in zip(("black", "not all numbers (NaN)"), faults(pictures), strict=True):
        print(*(f"WARNING: {number:04d}.png ({asked[number]!r}) is {what}\n" for number in which), sep="", end="")
    print(f"{len(pictures)} pictures: {grid}")


def draw(config: Config, prompts: list[str]) -> Tensor:
    """Return a picture of each prompt, (prompts, 3, height, width), by the model with the finished adapters."""
    import torch

    from mmpeft.assembly.finished_adapters import conditions, load
    from mmpeft.heads.denoising import Denoiser

    pipeline: Any = mmpeft.load_model(config.model)
    mmpeft.use_attention(pipeline, config.attention)
    load(pipeline, config.load)
    model = Denoiser(pipeline).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    side = config.resolution or model.resolution
    given = conditions(model, config.load, config.image_encoder, side)
    how = config.sampling.model_dump(include={"steps", "guidance", "negative"})
    return torch.cat([
        model.draw([prompt], [config.sampling.seed + number], given, size=(side, side), **how).cpu()
        for number, prompt in enumerate(prompts)
    ])  # fmt: skip


def main(arguments: list[str]) -> None:
    """Draw as the command line says."""
    run_script(arguments, Config, run)


if __name__ == "__main__":
    main(sys.argv[1:])
