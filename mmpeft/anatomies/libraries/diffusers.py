"""diffusers: the UNets of Stable Diffusion, and diffusion transformers (SD3, Flux, PixArt, DiT)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, own_modules
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.libraries.diffusers_encoder import UNetEncoder, bound, with_features, with_residuals
from mmpeft.anatomies.libraries.linear import (
    conv_site,
    embed_site,
    is_convolution,
    is_linear,
    is_norm,
    linear_site,
    norm_site,
    with_slices,
)
from mmpeft.anatomies.sites import BranchSite, CrossAttentionSite, DenoiserSite, Site
from mmpeft.anatomies.towers import Block, Tower

BLOCK = re.compile(r"(^|\.)(single_)?transformer_blocks\.\d+$")
ORDER = ("down_blocks", "mid_block", "up_blocks")
ATTENTION = {"attn1": "attn", "attn2": "cross", "attn": "attn"}
"""Names of a block's attention modules, by what diffusers calls them."""
LINEARS = {
    **{f"{own}.to_{part}": f"{name}.{part}" for own, name in ATTENTION.items() for part in "qkv"},
    **{f"{own}.to_out.0": f"{name}.out" for own, name in ATTENTION.items()},
    **{f"attn.add_{part}_proj": f"context.{part}" for part in "qkv"},
    "attn.to_add_out": "context.out",
    "ff.net.0.proj": "mlp.up",
    "ff.net.2": "mlp.down",
    "ff_context.net.0.proj": "context.up",
    "ff_context.net.2": "context.down",
    "proj_mlp": "mlp.up",
}
"""Names of a block's linear layers by their paths; ``context`` is the text's own stream through a joint attention."""
AROUND = {
    r"resnets\.\d+\.conv1": "resnet.conv1",
    r"resnets\.\d+\.conv2": "resnet.conv2",
    r"resnets\.\d+\.conv_shortcut": "resnet.shortcut",
    r"resnets\.\d+\.time_emb_proj": "resnet.time",
    r"downsamplers\.\d+\.conv": "downsample",
    r"upsamplers\.\d+\.conv": "upsample",
    r"attentions\.\d+\.(proj_in|proj_out)": r"\1",
}
"""Names of a UNet's layers around its transformer blocks, by the ends of their paths; others are named by the path."""
MISSING = {
    "head": "a denoiser has no classifier",
    "tokens": "a denoiser's tokens are its picture",
    "prompt": "a denoiser has no words: its text encoder does",
    "features": "a denoiser has no pooled features",
}


def read(model: nn.Module) -> Anatomy | None:
    """Return the anatomy of a denoiser; an autoencoder has no tower, for its latents are what the denoiser knows."""
    home = plain_class(model).__module__
    if home.startswith("diffusers.models.autoencoders"):
        return Anatomy(model, "diffusers", ())
    if not home.startswith(("diffusers.models.unets", "diffusers.models.transformers")):
        return None
    name = "unet" if ".unets" in home else "transformer"
    modules: dict[str, Any] = dict(own_modules(model))
    paths = sorted(filter(BLOCK.search, modules), key=_place)
    blocks = tuple(Block(i, at, tuple(_block_sites(modules[at], at, name, i))) for i, at in enumerate(paths))
    outer = (*_outer_sites(modules, name, paths), *_denoiser(model, name))
    return Anatomy(model, "diffusers", (Tower(name, _width(modules, paths), blocks, outer, MISSING),))


def _place(path: str) -> int:
    """Return the place of a block's part of the UNet in the forward pass; parts of transformers are in order."""
    first = path.partition(".")[0]
    return ORDER.index(first) if first in ORDER else 0


def _width(modules: dict[str, Any], paths: list[str]) -> int:
    """Return the width of the blocks where they all have the same, else 0."""
    widths = {_first_norm(modules[path]) for path in paths}
    return widths.pop() if len(widths) == 1 else 0


def _first_norm(block: nn.Module) -> int:
    return next(int(m.out_features) for path, m in block.named_modules() if path.endswith("to_q"))


def _block_sites(block: Any, path: str, tower: str, layer: int) -> Iterator[Site]:
    place: dict[str, Any] = {"tower": tower, "layer": layer}
    width = _first_norm(block)
    plain = getattr(block, "norm_type", "") == "layer_norm"
    for inner, name, norm in (("attn1", "attn", "norm1"), ("attn", "attn", ""), ("attn2", "cross", "norm2"),
                              ("ff", "mlp", "norm3"), ("ff_context", "context", "")):  # fmt: skip
        host = getattr(block, inner, None)
        if isinstance(host, nn.Module):
            entry = getattr(block, norm) if plain and norm else None
            ends: dict[str, Any] = {"entry": entry, "exit": None if entry is None else host}
            own: dict[str, Any] = {
                "name": name,
                "path": f"{path}.{inner}",
                "host": host,
                "host_path": f"{path}.{inner}",
            }
            yield BranchSite(width=width, **own, **ends, **place)
    yield BranchSite(name="block", path=path, host=block, host_path=path, width=width, **place)
    for inner, module in block.named_modules():
        at = f"{path}.{inner}"
        if is_linear(module):
            yield from _linear(block, inner, linear_site(LINEARS.get(inner, inner), module, at, **place))
        elif is_norm(module):
            yield norm_site("norm" if re.fullmatch(r"norm\d", inner) else inner, module, at, **place)
    yield from _attention(block, path, **place)


def _linear(block: nn.Module, inner: str, site: Any) -> Iterator[Site]:
    """Yield a linear site; of a gated layer also its two halves, the second of which is the gate."""
    parent = block.get_submodule(inner.rpartition(".")[0])
    if plain_class(parent).__name__ == "GEGLU":
        half = site.out_features // 2
        yield from with_slices(replace(site, name="mlp.gate_up"), {"mlp.up": half, "mlp.gate": half})
    else:
        yield site


def _attention(block: Any, path: str, **place: Any) -> Iterator[CrossAttentionSite]:
    """Yield the cross-attention, where images attach: what its queries found in the text, before it is projected."""
    cross = getattr(block, "attn2", None)
    if cross is None or getattr(cross, "norm_q", None) is not None:
        return
    at = f"{path}.attn2"
    yield CrossAttentionSite(
        name="cross.attention",
        path=f"{at}.attention",
        host=cross.to_out[0],
        host_path=f"{at}.to_out.0",
        query=cross.to_q,
        key=cross.to_k,
        value=cross.to_v,
        heads=int(cross.heads),
        width=int(cross.to_k.out_features),
        context=int(cross.to_k.in_features),
        **place,
    )


def _outer_sites(modules: dict[str, Any], tower: str, blocks: list[str]) -> Iterator[Site]:
    """Yield the embedding, and the linear layers, convolutions and norms around the blocks."""
    embedded = False
    for path, module in modules.items():
        if any(path == block or path.startswith(block + ".") for block in blocks):
            continue
        if isinstance(module, nn.Conv2d) and not embedded:
            embedded = True
            yield embed_site(module, path, tower=tower)
        if is_linear(module):
            yield linear_site(_around(path), module, path, tower=tower, layer=None)
        elif is_convolution(module):
            yield conv_site(_around(path), module, path, tower=tower, layer=None)
        elif is_norm(module):
            yield norm_site("norm", module, path, tower=tower, layer=None)


def _around(path: str) -> str:
    for end, name in AROUND.items():
        if match := re.search(rf"(?:^|\.){end}$", path):
            return match.expand(name)
    return path


def _denoiser(model: Any, tower: str) -> Iterator[DenoiserSite]:
    """Yield the UNet as a whole, whose encoder a ControlNet copies."""
    if tower != "unet" or not hasattr(model, "down_blocks"):
        return
    context = model.config.cross_attention_dim
    yield DenoiserSite(
        name="denoiser",
        path="denoiser",
        host=model,
        host_path="",
        tower=tower,
        context=int(context if isinstance(context, int) else context[-1]),
        channels=int(model.config.block_out_channels[0]),
        widths=tuple(model.config.block_out_channels),
        strides=tuple(_strides(model)),
        copy=UNetEncoder,
        bound=bound,
        with_residuals=with_residuals,
        with_features=with_features,
    )


def _strides(unet: Any) -> Iterator[int]:
    """Yield how many places of the sample one place has where feature maps join each block of a UNet's encoder.

    They join in front of the downsampling of a block with attention, and behind that of one without.
    """
    stride = 1
    for block in unet.down_blocks:
        after = stride * (2 if block.downsamplers else 1)
        yield stride if getattr(block, "has_cross_attention", False) else after
        stride = after
