"""LoRA under the names that ComfyUI gives a UNet: ``diffusion_model.<original path>.lora_A.weight``, with its alpha.

Text encoders keep kohya's names, which ComfyUI reads too.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mmpeft.formats.any_file import check_suffix, read_values, write_tensors
from mmpeft.formats.diffusion.deltas import (
    Address,
    adapter_of,
    deltas_of,
    layers,
    named,
    read_deltas,
    refuse_transformer,
)
from mmpeft.formats.diffusion.kohya import entries, header, known_names, preferred_names
from mmpeft.formats.diffusion.native_names import native_names
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hosted import Hosted, Model, Opened
from mmpeft.settings import Settings


def read(source: Path, model: Model, options: Settings) -> Imported:
    """Return the deltas, scaled by alpha / rank, or by 1 without an alpha."""
    names, values = known_names(model) | _names(model), read_values(source)
    refuse_transformer(model, values, FORMAT.name)
    return adapter_of(model, read_deltas(source, model, values, names), [])


def write(opened: Opened, dest: Path) -> None:
    """Write one file."""
    check_suffix(dest, ".safetensors")
    deltas, _ = deltas_of(opened, FORMAT.name)
    texts = {address: name for name, address in preferred_names(opened.model).items() if address[0] != "unet"}
    names = texts | {address: name for name, address in _names(opened.model).items()}
    tensors: dict[str, Tensor] = {}
    for name, delta in named(deltas, names, FORMAT.name):
        for key, value in entries(name, delta).items():
            theirs = key if delta.address in texts else key.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
            tensors[theirs] = value
    write_tensors(dest, tensors, **header(deltas, opened.model))


def _names(model: Model) -> dict[str, Address]:
    unet = model.modules.get("unet")
    addresses = layers(model, "unet")
    original = {} if unet is None else native_names(unet)
    return {f"diffusion_model.{native}": ("unet", p) for p, native in original.items() if ("unet", p) in addresses}


FORMAT = Hosted("comfyui", r"^diffusion_model\..*lora", read, Settings, write)
convert, export = FORMAT.convert, FORMAT.export
