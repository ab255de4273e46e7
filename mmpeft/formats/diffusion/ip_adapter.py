"""IP-Adapter's files, base and Plus: ``image_proj``, and ``ip_adapter`` with a number for each layer.

The numbers count the UNet's attentions as its modules are registered: down, up, the middle last; those to text are odd.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.edits import DecoupledAttention, ImageTokens
from mmpeft.files import replaced_file
from mmpeft.formats.any_file import check_suffix, read_values, write_tensors
from mmpeft.formats.foreign import Imported
from mmpeft.formats.hosted import Hosted, Model, Opened, enter_all
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.tensor_file import refuse
from mmpeft.methods import IPAdapter
from mmpeft.settings import Settings

HEAD_WIDTH = 64
PROJECTION = {
    "norm_features": "0.norm1",
    "norm_latents": "0.norm2",
    **{name: f"0.{name}" for name in ("to_q", "to_kv", "to_out")},
    "norm": "1.0",
    "up": "1.1",
    "down": "1.3",
}
"""Names in a layer of the resampler."""
OTHERS = {
    r"image_proj\.perceiver_resampler\..*": "IP-Adapter FaceID Plus (features of a face beside an image's, and LoRA)",
    r"image_proj\.proj\.3\.weight": "IP-Adapter Full Face (all of an image's features through an MLP)",
    r"image_proj\.proj\.0\.weight|ip_adapter\.\d+\.to_\w+_lora\..*": "IP-Adapter FaceID (features of a face and LoRA)",
}
"""Kinds of other files under the same names, by signs in them, as diffusers tells them apart."""
OURS = re.compile(
    r"(?P<layer>.+)\.attention\.ip_adapter\.(?P<name>to_[kv])\.weight|denoiser\.ip_adapter\.(?P<image>.+)"
)


def read(source: Path, model: Model, options: Settings) -> Imported:
    """Return the method whose sizes the file has."""
    _, unet = model.module("unet")
    ledger = Ledger(source, read_values(source))
    method = _method(ledger, unet)
    numbers = _numbers(unet)
    enter_all(ledger, model, [method], lambda key: _theirs(key, numbers))
    return Imported([method], ledger.close())


def write(opened: Opened, dest: Path) -> None:
    """Write one file; a factor that is not 1 goes into the values, which gives the same function."""
    check_suffix(dest, ".safetensors", ".bin")
    places = opened.places(FORMAT.name, ImageTokens, DecoupledAttention)
    role, unet = opened.model.module("unet")
    numbers = _numbers(unet)
    scales = {key: edit.scale for _, edit, key in places[role] if isinstance(edit, DecoupledAttention)}
    if len(scales) != len(numbers):
        raise ValueError(f"{opened.directory}: format ip_adapter needs all {len(numbers)} layers, not {len(scales)}")
    tensors = {}
    for key, value in opened.tensors[role].items():
        scale = scales.get(key.removesuffix(".to_v.weight"), 1.0)
        tensors[_theirs(key, numbers)] = value if scale == 1.0 else value * scale
    if dest.suffix == ".safetensors":
        write_tensors(dest, tensors)
        return
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in tensors.items():
        part, _, name = key.partition(".")
        nested[part][name] = value.detach().contiguous()
    with replaced_file(dest) as temporary:
        torch.save(nested, temporary)


def _method(ledger: Ledger, unet: Any) -> IPAdapter:
    """Return the method; a resampler is told by its learned queries."""
    others = [f"{kind}: only IP-Adapter and Plus are read" for sign, kind in OTHERS.items() if sign in ledger]
    refuse(ledger.path, others[:1])
    if r"image_proj\.latents" not in ledger:
        rows, features = ledger.shape(r"image_proj\.proj\.weight", 2)
        context = unet.config.cross_attention_dim
        return IPAdapter(features=features, tokens=rows // context)
    _, tokens, width = ledger.shape(r"image_proj\.latents", 3)
    _, features = ledger.shape(r"image_proj\.proj_in\.weight", 2)
    inner, _ = ledger.shape(r"image_proj\.layers\.0\.0\.to_q\.weight", 2)
    depth = ledger.count(r"image_proj\.layers\.(\d+)\..*")
    size: dict[str, Any] = {"features": features, "tokens": tokens, "width": width, "depth": depth}
    return IPAdapter(resampler=True, heads=inner // HEAD_WIDTH, **size)


def _numbers(unet: Any) -> dict[str, int]:
    """Return the number of each cross-attention among all attentions."""
    paths = [path for path, _ in own_modules(unet) if path.endswith((".attn1", ".attn2"))]
    return {path: number for number, path in enumerate(paths) if path.endswith(".attn2")}


def _theirs(key: str, numbers: dict[str, int]) -> str:
    match = OURS.fullmatch(key)
    assert match is not None
    if match["image"] is None:
        return f"ip_adapter.{numbers[match['layer']]}.{match['name']}_ip.weight"
    layer = re.fullmatch(r"(layers\.\d+)\.(\w+)\.(weight|bias)", match["image"])
    return f"image_proj.{f'{layer[1]}.{PROJECTION[layer[2]]}.{layer[3]}' if layer else match['image']}"


FORMAT = Hosted("ip_adapter", r"^(image_proj|ip_adapter)\.", read, Settings, write)
convert, export = FORMAT.convert, FORMAT.export
