"""diffusers: the UNets of Stable Diffusion, and diffusion transformers (SD3, Flux, PixArt, DiT)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, own_modules
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.layers import is_convolution, is_linear
from mmpeft.anatomies.libraries.diffusers_encoder import UNetEncoder, bound, with_features, with_residuals
from mmpeft.anatomies.libraries.linear import conv_site, embed_site, is_norm, linear_site, norm_site, with_slices
from mmpeft.anatomies.sites import BranchSite, CrossAttentionSite, DenoiserSite, Site
from mmpeft.anatomies.towers import Block, Tower

ORDER = ("down_blocks", "mid_block", "up_blocks")
ATTENTION = re.compile(r"(^|_|\.)(attn\d?|attention)$")
"""How diffusers calls a block's attention modules."""
TOKENS = re.compile(r"transformer_blocks\.\d+$")
"""Blocks of a UNet that work on tokens (batch, tokens, width), where others may work on maps (batch, width, h, w)."""
CROSS = re.compile(r"cross|attn2$")
QUERIES = ("to_q", "to_query", "to_qkv", "qkv", "to_qkv_mlp_proj", "q_proj", "img_attn_qkv", "img_qkv_proj")
"""Names of the layer that makes queries, whose input is the residual stream."""
PARTS = {
    **{f"{form}{letter}": letter for letter in "qkv" for form in ("to_", "", "linear_")},
    **{f"{letter}_proj": letter for letter in "qkv"},
    "to_query": "q",
    "to_key": "k",
    "to_value": "v",
    "to_out.0": "out",
    "to_out": "out",
    "out_proj": "out",
    **dict.fromkeys(("to_qkv", "qkv", "to_qkv_mlp_proj"), "qkv"),
    "to_kv": "kv",
}
"""Names of an attention's linear layers; what they are in the field's terms."""
LINEARS = {
    **{f"attn.add_{part}_proj": f"context.{part}" for part in "qkv"},
    "attn.to_add_out": "context.out",
    "ff.net.0.proj": "mlp.up",
    "ff.net.2": "mlp.down",
    "ffn.net.0.proj": "mlp.up",
    "ffn.net.2": "mlp.down",
    "ff_context.net.0.proj": "context.up",
    "ff_context.net.2": "context.down",
    "proj_mlp": "mlp.up",
}
"""Names of a block's other linear layers by their paths; ``context`` is the text's stream through a joint attention."""
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
    paths = sorted((path for path in modules if _is_block(modules, path)), key=_place)
    blocks = tuple(Block(i, at, tuple(_block_sites(modules[at], at, name, i))) for i, at in enumerate(paths))
    outer = (*_outer_sites(modules, name, paths), *_denoiser(model, name))
    return Anatomy(model, "diffusers", (Tower(name, _width(modules, paths), blocks, outer, MISSING),))


def _place(path: str) -> int:
    """Return the place of a block's part of the UNet in the forward pass; parts of transformers are in order."""
    first = path.partition(".")[0]
    return ORDER.index(first) if first in ORDER else 0


def _is_block(modules: dict[str, Any], path: str) -> bool:
    """Whether a member of a stack attends: a module of its own does, or (in UNets without text) it does itself."""
    parent = modules.get(path.rpartition(".")[0])
    if not isinstance(parent, nn.ModuleList):
        return False
    return _attends(modules[path]) or any(ATTENTION.search(name) for name in _attentions(modules[path]))


def _attends(module: nn.Module) -> bool:
    return any(is_linear(module._modules.get(name)) for name in QUERIES)


def _attentions(block: nn.Module) -> list[str]:
    """Return the names of a block's attention modules."""
    return [name for name, child in block._modules.items() if child is not None and _attends(child)]


def _width(modules: dict[str, Any], paths: list[str]) -> int:
    """Return the width of the blocks where they all have the same, else 0."""
    widths = {_stream(modules[path]) for path in paths}
    return widths.pop() if len(widths) == 1 else 0


def _stream(block: nn.Module) -> int:
    """Return the width of a block's residual stream: of what its first queries are made of."""
    named = (m for path, m in block.named_modules() if path.rpartition(".")[2] in QUERIES and is_linear(m))
    return next((int(m.in_features) for m in named), 0)


def _block_sites(block: Any, path: str, tower: str, layer: int) -> Iterator[Site]:
    location: dict[str, Any] = {"tower": tower, "layer": layer}
    width = _stream(block)
    if tower == "transformer" or TOKENS.search(path):
        yield from _branches(block, path, width, location)
        yield BranchSite(name="block", path=path, host=block, host_path=path, width=width, **location)
    for inner, module in block.named_modules():
        at = f"{path}.{inner}".rstrip(".")
        if is_linear(module):
            yield from _linear(block, inner, linear_site(_named(inner), module, at, **location))
        elif is_norm(module):
            yield norm_site("norm" if re.fullmatch(r"norm\d", inner) else inner, module, at, **location)
    yield from _attention(block, path, **location)


def _branches(block: Any, path: str, width: int, location: dict[str, Any]) -> Iterator[BranchSite]:
    plain = getattr(block, "norm_type", "") == "layer_norm"
    norms = {"attn1": "norm1", "attn2": "norm2", "ff": "norm3"}
    for inner in (*_attentions(block), "ff", "ff_context"):
        host = getattr(block, inner, None)
        if isinstance(host, nn.Module):
            entry = getattr(block, norms[inner]) if plain and inner in norms else None
            name = {"ff": "mlp", "ff_context": "context"}.get(inner) or ("cross" if CROSS.search(inner) else "attn")
            ends: dict[str, Any] = {"entry": entry, "exit": None if entry is None else host}
            paths: dict[str, Any] = {"path": f"{path}.{inner}", "host_path": f"{path}.{inner}"}
            yield BranchSite(name=name, host=host, width=width, **paths, **ends, **location)


def _named(inner: str) -> str:
    """Return the field's name for a linear layer by its path in its block, or the path where it has none."""
    if inner in LINEARS:
        return LINEARS[inner]
    for end, part in PARTS.items():
        attention, dot, _ = inner.rpartition(f".{end}") if inner.endswith(f".{end}") else ("", "", "")
        if inner == end or (dot and ATTENTION.search(attention)):
            return f"{'cross' if CROSS.search(attention) else 'attn'}.{part}"
    return inner


def _linear(block: nn.Module, inner: str, site: Any) -> Iterator[Site]:
    """Yield a linear site; of a gated layer also its two halves, the second of which is the gate."""
    parent: Any = block.get_submodule(inner.rpartition(".")[0])
    if inner.endswith("to_qkv_mlp_proj") and hasattr(parent, "inner_dim"):
        yield from with_slices(site, dict.fromkeys(("attn.q", "attn.k", "attn.v"), int(parent.inner_dim)))
    elif plain_class(parent).__name__ == "GEGLU":
        half = site.out_features // 2
        yield from with_slices(replace(site, name="mlp.gate_up"), {"mlp.up": half, "mlp.gate": half})
    else:
        yield site


def _attention(block: Any, path: str, **location: Any) -> Iterator[CrossAttentionSite]:
    """Yield the cross-attention, where images attach: what its queries found in the text, before it is projected."""
    cross: Any = getattr(block, "attn2", None)
    parts = [getattr(cross, name, None) for name in ("to_q", "to_k", "to_v")]
    ends = isinstance(getattr(cross, "to_out", None), nn.ModuleList) and hasattr(cross, "heads")
    if not ends or not all(map(is_linear, parts)) or getattr(cross, "norm_q", None) is not None:
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
        **location,
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
    context = getattr(model.config, "cross_attention_dim", None)
    if tower != "unet" or context is None or not hasattr(model, "get_aug_embed"):
        return
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
