"""ControlNet in diffusers' directory: ``config.json`` and ``diffusion_pytorch_model.safetensors``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from mmpeft.edits import ControlBranch
from mmpeft.formats.any_file import find_file, read_values, write_tensors
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hosted import Hosted, Model, Opened, enter_all
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.storage import new_directory, read_json, validated
from mmpeft.methods import ControlNet
from mmpeft.optional import require
from mmpeft.settings import Settings

FILES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PREFIX = "denoiser.controlnet."
LARGEST = 2**20
"""Of widths and channels."""


class ControlNetFile(Settings):
    """What is read of diffusers' ``config.json``; the rest is the UNet's."""

    model_config = ConfigDict(extra="ignore")

    conditioning_channels: int = Field(default=3, ge=1, le=LARGEST)
    conditioning_embedding_out_channels: tuple[Annotated[int, Field(ge=1, le=LARGEST)], ...] = (16, 32, 96, 256)
    global_pool_conditions: bool = False
    controlnet_conditioning_channel_order: Literal["rgb", "bgr"] = "rgb"


def read(source: Path, model: Model, options: Settings) -> Imported:
    """Return the method with the sizes of the configuration."""
    config = validated(source / "config.json", read_json(source / "config.json"), ControlNetFile)
    path = find_file(source, FILES)
    ledger = Ledger(path, read_values(path))
    method = ControlNet(
        channels=config.conditioning_channels,
        widths=config.conditioning_embedding_out_channels,
        pooled=config.global_pool_conditions,
    )
    enter_all(ledger, model, [method], namer(model))
    if config.controlnet_conditioning_channel_order == "rgb":
        return Imported([method], ledger.close())
    key = model.key(model.module("unet")[0], f"{PREFIX}hint.conv_in.weight")
    tensors = ledger.close()
    tensors[key] = tensors[key].flip(1).contiguous()
    return Imported([method], tensors, ["the file wants the control image as bgr: turned round, to take rgb"])


def write(opened: Opened, dest: Path) -> None:
    """Write the directory; guess mode is no part of it, but of each call in diffusers."""
    branch, tensors = opened_branch(opened, FORMAT.name)
    _, unet = opened.model.module("unet")
    diffusers = require("diffusers", "diffusers")
    known = inspect.signature(diffusers.ControlNetModel.__init__).parameters
    config = {key: value for key, value in unet.config.items() if key in known}
    widths = tuple(block.out_channels for block in [branch.hint.conv_in, *branch.hint.blocks[1::2]])
    config |= {"conditioning_channels": branch.hint.conv_in.in_channels, "global_pool_conditions": branch.pooled}
    config["conditioning_embedding_out_channels"] = widths
    with torch.device("meta"):
        built = diffusers.ControlNetModel(**config)
    with new_directory(dest) as partial:
        built.save_config(partial)
        write_tensors(partial / FILES[0], tensors)


def opened_branch(opened: Opened, format: str) -> tuple[Any, dict[str, Tensor]]:
    """Return the edit of an adapter that is one ControlNet, and its tensors by diffusers' names."""
    role, _ = opened.model.module("unet")
    ((_, branch, _),) = opened.places(format, ControlBranch)[role]
    theirs = namer(opened.model)
    return branch, {theirs(key): value for key, value in opened.tensors[role].items()}


def namer(model: Model) -> Any:
    """Return the function from our names to diffusers'; the last of the zero convolutions is the middle block's."""
    _, unet = model.module("unet")
    last = sum(len(block.resnets) + len(block.downsamplers or ()) for block in unet.down_blocks) + 1

    def theirs(key: str) -> str:
        inner = key.removeprefix(PREFIX)
        if zero := re.fullmatch(r"zeros\.(\d+)\.(weight|bias)", inner):
            middle = int(zero[1]) == last
            return f"{'controlnet_mid_block' if middle else f'controlnet_down_blocks.{zero[1]}'}.{zero[2]}"
        part, _, rest = inner.partition(".")
        return rest if part == "encoder" else f"controlnet_cond_embedding.{rest}"

    return theirs


FORMAT = Hosted("controlnet", r"^controlnet_(cond_embedding|down_blocks)\.", read, Settings, write)
convert, export = FORMAT.convert, FORMAT.export
