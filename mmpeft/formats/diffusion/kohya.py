"""kohya's LoRA files: ``lora_unet_*`` and ``lora_te_*``, with underscores for dots, so that only a model tells them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpeft.formats.any_file import check_suffix, read_values, write_tensors
from mmpeft.formats.diffusion.deltas import (
    Address,
    Delta,
    adapter_of,
    deltas_of,
    layers,
    named,
    read_deltas,
    refuse_transformer,
)
from mmpeft.formats.diffusion.native_names import native_names
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hosted import Hosted, Model, Opened
from mmpeft.settings import Settings

ROLES = ("unet", "text_encoder", "text_encoder_2")


def read(source: Path, model: Model, options: Settings) -> Imported:
    """Return the deltas; where a layer has no alpha, kohya's scale is 1."""
    values = read_values(source)
    refuse_transformer(model, values, FORMAT.name)
    return adapter_of(model, read_deltas(source, model, values, known_names(model)), [])


def write(opened: Opened, dest: Path) -> None:
    """Write one file with the header that kohya's tools look into."""
    check_suffix(dest, ".safetensors")
    deltas, _ = deltas_of(opened, FORMAT.name)
    names = {address: name for name, address in preferred_names(opened.model).items()}
    tensors: dict[str, Tensor] = {}
    for name, delta in named(deltas, names, FORMAT.name):
        tensors |= entries(name, delta)
    write_tensors(dest, tensors, **header(deltas, opened.model))


def entries(name: str, delta: Delta) -> dict[str, Tensor]:
    """Return the tensors of one layer."""
    tensors = {f"{name}.lora_down.weight": delta.a, f"{name}.lora_up.weight": delta.b}
    tensors[f"{name}.alpha"] = torch.tensor(delta.alpha)
    if delta.magnitude is not None:
        tensors[f"{name}.dora_scale"] = delta.magnitude.view(-1, *[1] * (delta.a.ndim - 1))
    return tensors


def header(deltas: list[Delta], model: Model) -> dict[str, str]:
    """Return kohya's metadata: rank and alpha where all layers have the same."""
    ranks, alphas = {len(delta.a) for delta in deltas}, {delta.alpha for delta in deltas}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        **({"ss_base_model_version": "sdxl_base_v1-0"} if is_large(model.modules.get("unet")) else {}),
    }


def is_large(unet: Any) -> bool:
    """Whether a UNet is SDXL's, which kohya's code builds with the original names."""
    return unet is not None and unet.config.addition_embed_type == "text_time"


def known_names(model: Model) -> dict[str, Address]:
    """Return the layers by all the names that files have for them."""
    original = native_names(model.modules["unet"]) if "unet" in model.modules else {}
    addresses = layers(model, *ROLES)
    names = {name: address for address in addresses for name in _names(*address)}
    return names | {_flat("lora_unet", name): ("unet", p) for p, name in original.items() if ("unet", p) in addresses}


def preferred_names(model: Model) -> dict[str, Address]:
    """Return the layers by the names that kohya's own code would write for this model."""
    unet = model.modules.get("unet")
    original = native_names(unet) if is_large(unet) else {}
    names = {}
    for role, path in layers(model, *ROLES):
        first, *second = _names(role, original.get(path, path) if role == "unet" else path)
        names[second[0] if second and "text_encoder_2" in model.modules else first] = (role, path)
    return names


def _names(role: str, path: str) -> Iterator[str]:
    if role == "unet":
        yield _flat("lora_unet", path)
        return
    inner = f"text_model.{path.removeprefix('text_model.')}" if path != "text_projection" else path
    for prefix in ("lora_te2",) if role == "text_encoder_2" else ("lora_te", "lora_te1"):
        yield _flat(prefix, inner)


def _flat(prefix: str, path: str) -> str:
    return f"{prefix}_{path}".replace(".", "_")


FORMAT = Hosted("kohya", r"^lora_(unet|te\d?)_", read, Settings, write)
convert, export = FORMAT.convert, FORMAT.export
