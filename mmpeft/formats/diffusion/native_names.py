"""The names that a UNet's modules have in the original code of Stable Diffusion (ldm, sgm)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmpeft.anatomies.anatomy import own_modules

OUTER = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def native_names(unet: Any) -> dict[str, str]:
    """Return the original path of every module of a UNet, or of its encoder, by its path in diffusers."""
    roots = dict(_blocks(unet))
    names = {}
    for path, _ in own_modules(unet):
        root = next((old for old in roots if path.startswith(f"{old}.")), "")
        inner = path.removeprefix(f"{root}.")
        if path in OUTER:
            names[path] = OUTER[path]
        elif root.endswith("samplers.0"):
            names[path] = f"{roots[root]}.{'op' if 'down' in root else 'conv'}"
        elif root:
            names[path] = f"{roots[root]}.{RESNET.get(inner, inner) if '.resnets.' in root else inner}"
    return names


def _blocks(unet: Any) -> Iterator[tuple[str, str]]:
    """Yield the path of each resnet, transformer and sampler, and its original one.

    The original counts a number for each resnet, with the transformer behind it, and each downsampler; upsamplers come
    third, or second, in the last one of their block.
    """
    number = 1
    for b, block in enumerate(unet.down_blocks):
        for k in range(len(block.resnets)):
            yield from _pair(block, f"down_blocks.{b}", k, f"input_blocks.{number}")
            number += 1
        if block.downsamplers:
            yield f"down_blocks.{b}.downsamplers.0", f"input_blocks.{number}.0"
            number += 1
    for k in range(len(unet.mid_block.resnets)):
        yield f"mid_block.resnets.{k}", f"middle_block.{2 * k}"
        yield f"mid_block.attentions.{k}", f"middle_block.{2 * k + 1}"
    number = 0
    for b, block in enumerate(getattr(unet, "up_blocks", ())):
        for k in range(len(block.resnets)):
            yield from _pair(block, f"up_blocks.{b}", k, f"output_blocks.{number}")
            number += 1
        if block.upsamplers:
            index = 2 if hasattr(block, "attentions") else 1
            yield f"up_blocks.{b}.upsamplers.0", f"output_blocks.{number - 1}.{index}"


def _pair(block: Any, path: str, k: int, original: str) -> Iterator[tuple[str, str]]:
    yield f"{path}.resnets.{k}", f"{original}.0"
    if hasattr(block, "attentions"):
        yield f"{path}.attentions.{k}", f"{original}.1"
