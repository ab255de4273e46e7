"""T2I-Adapter in diffusers' directory: ``config.json`` and ``diffusion_pytorch_model.safetensors``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from mmpeft.edits import FeatureMaps
from mmpeft.formats.any_file import find_file, read_values, write_tensors
from mmpeft.formats.diffusion.controlnet import FILES, LARGEST
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hosted import Hosted, Model, Opened, enter_all
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.storage import new_directory, read_json, validated, write_json
from mmpeft.formats.tensor_file import refuse
from mmpeft.methods import T2IAdapter
from mmpeft.settings import Settings

KINDS = ("full_adapter", "full_adapter_xl", "light_adapter")
PREFIX = "denoiser.t2i_adapter."


class T2IAdapterFile(Settings):
    """What is read of diffusers' ``config.json``."""

    model_config = ConfigDict(extra="ignore")

    adapter_type: Literal["full_adapter", "full_adapter_xl", "light_adapter"] = "full_adapter"
    downscale_factor: int = Field(default=8, ge=1, le=1024)
    num_res_blocks: int = Field(default=2, ge=1, le=1000)
    in_channels: int = Field(default=3, ge=1, le=LARGEST)
    channels: tuple[int, ...] = ()


def read(source: Path, model: Model, options: Settings) -> Imported:
    """Return the method with the sizes of the configuration."""
    config = validated(source / "config.json", read_json(source / "config.json"), T2IAdapterFile)
    kind, factor = config.adapter_type, config.downscale_factor
    if kind != KINDS[2] and (kind == KINDS[1]) != (factor > 8):
        refuse(source, [f"adapter_type {kind!r} at downscale_factor {factor}: only the XL kind has more than 8"])
    depth, channels = config.num_res_blocks, config.in_channels
    widths = model.module("unet")[1].config.block_out_channels
    middle = kind != KINDS[2] and len(config.channels) > len(widths)
    method = T2IAdapter(channels=channels, factor=factor, depth=depth, light=kind == KINDS[2], middle=middle)
    path = find_file(source, FILES)
    ledger = Ledger(path, read_values(path))
    enter_all(ledger, model, [method], _theirs)
    return Imported([method], ledger.close())


def write(opened: Opened, dest: Path) -> None:
    """Write the directory."""
    role, unet = opened.model.module("unet")
    places: Any = opened.places(FORMAT.name, FeatureMaps)[role]
    ((_, maps, _),) = places
    light, widths = maps.conv_in is None, list(unet.config.block_out_channels)
    if light and widths[-1:] != widths[-2:-1]:
        raise ValueError(
            f"{opened.directory}: diffusers' light adapter ends in two equal widths, and here are {widths}"
        )
    first = maps.body[0].in_conv.in_channels if light else maps.conv_in.in_channels
    config = {
        "_class_name": "T2IAdapter",
        "adapter_type": KINDS[2] if light else KINDS[maps.factor > 8],
        "channels": widths[:-1] if light else widths + widths[-1:] * (len(maps.body) - len(widths)),
        "downscale_factor": maps.factor,
        "in_channels": first // maps.factor**2,
        "num_res_blocks": len(maps.body[0].resnets),
    }
    with new_directory(dest) as partial:
        write_json(partial / "config.json", config)
        write_tensors(partial / FILES[0], {_theirs(key): value for key, value in opened.tensors[role].items()})


def _theirs(key: str) -> str:
    return f"adapter.{key.removeprefix(PREFIX)}"


FORMAT = Hosted("t2i_adapter", r"^adapter\.(body|conv_in)\.", read, Settings, write)
convert, export = FORMAT.convert, FORMAT.export
