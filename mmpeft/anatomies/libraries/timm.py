"""timm: vision transformers (plain, EVA, DINO, Swin ...) and, as far as their sites exist, all other models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, own_modules, parameters_site
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.layers import is_convolution, is_linear
from mmpeft.anatomies.libraries.linear import (
    Switches,
    conv_site,
    embed_site,
    is_norm,
    linear_site,
    norm_site,
    site_name,
    with_slices,
)
from mmpeft.anatomies.libraries.stacks import stacks
from mmpeft.anatomies.sites import BranchSite, FeaturesSite, LinearSite, SequenceSite, Site
from mmpeft.anatomies.towers import Block, Tower

CONTIGUOUS = {
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.beit.Attention",
    "timm.models.cait.TalkingHeadAttn",
    "timm.models.eva.EvaAttention",
    "timm.models.swin_transformer.WindowAttention",
    "timm.models.swin_transformer_v2.WindowAttention",
    "timm.models.vision_transformer_relpos.RelPosAttention",
    "timm.models.xcit.XCA",
}
"""Attention classes whose fused qkv holds all rows of q, then of k, then of v. Others interleave them by head."""

PRE_NORM = {"Block", "EvaBlock", "SwinTransformerBlock", "RelPosBlock"}
"""Blocks of x + drop_path1(attn(norm1(x))), then x + drop_path2(mlp(norm2(x)))."""
POST_NORM = {"ResPostBlock", "EvaBlockPostNorm", "SwinTransformerV2Block", "ResPostRelPosBlock"}
"""Blocks of x + drop_path1(norm1(attn(x))), then the same with mlp."""
WINDOWED = {("SwinTransformerV2Block", "attn")}
"""Sublayers of the latter that see windows of the residual stream, not the stream."""
MAPS = {"EfficientAdditiveAttention"}
"""Sublayers that return maps (batch, width, height, width), though they compute on tokens."""
OUTPUTS = ("proj", "fc2", "w3", "out_proj", "to_out", "c_proj")
"""What timm calls the layer that a sublayer ends in."""
SEQUENCES = {"VisionTransformer", "VisionTransformerDistilled", "Eva"}
"""Models of one stack whose attention takes any number of tokens."""

EXPECTED = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down", "attn", "mlp", "tokens", "head")


def read(model: nn.Module) -> Anatomy | None:
    """Return the anatomy of a timm model: one tower, ``vision``."""
    library = next((cls for cls in plain_class(model).__mro__ if cls.__module__.startswith("timm.models.")), None)
    if library is None or not hasattr(model, "get_classifier"):
        return None
    modules = dict(own_modules(model))
    paths = _blocks(modules)
    prefix = int(getattr(model, "num_prefix_tokens", 0))
    blocks = tuple(Block(i, path, tuple(_block_sites(modules[path], path, i, prefix))) for i, path in enumerate(paths))
    outside = (
        *_outer_sites(model, modules, paths),
        *_tokens(model, library.__name__, blocks),
        *_features(model, modules),
        *_heads(model, modules),
    )
    present = {site.name for site in outside} | {site.name for block in blocks for site in block.sites}
    missing = {name: _reason(name, library.__name__, blocks) for name in EXPECTED if name not in present}
    return Anatomy(model, "timm", (Tower("vision", int(model.num_features), blocks, outside, missing),))  # type: ignore[arg-type]


def _blocks(modules: dict[str, nn.Module]) -> list[str]:
    """Return the paths of the blocks in order: of what timm calls ``blocks``, and of every other repeated stack."""
    named = [path for path in modules if path.rpartition(".")[2] == "blocks" and "blocks" not in path.split(".")[:-1]]
    known = {f"{stack}.{name}" for stack in named for name, _ in modules[stack].named_children()}
    around = {".".join(path.split(".")[:end]) for path in known for end in range(path.count(".") + 1)}
    for path in (block for blocks in stacks(modules).values() for block in blocks):
        above = {".".join(path.split(".")[:end]) for end in range(1, path.count(".") + 2)}
        if path not in around and not above & known:
            known.add(path)
    return [path for path in modules if path in known]


def _block_sites(block: nn.Module, path: str, layer: int, prefix: int) -> Iterator[Site]:
    yield from _branches(block, path, layer, prefix)
    location: dict[str, Any] = {"tower": "vision", "layer": layer}
    for inner, module in block.named_modules():
        if is_linear(module):
            site = linear_site(site_name(inner), module, f"{path}.{inner}", **location)
            parent = block.get_submodule(inner.rpartition(".")[0])
            yield from _slices(parent, inner.rpartition(".")[2], site)
        elif is_norm(module):
            yield norm_site(
                inner.replace("norm1", "norm").replace("norm2", "norm"), module, f"{path}.{inner}", **location
            )
        elif is_convolution(module):
            yield conv_site(inner, module, f"{path}.{inner}", **location)


def _slices(parent: nn.Module, attribute: str, site: LinearSite) -> Iterator[LinearSite]:
    """Yield a linear site, and the slices of it that its parent is known to make."""
    kind = f"{type(parent).__module__}.{plain_class(parent).__name__}"
    if attribute == "qkv" and kind in CONTIGUOUS:
        heads = int(getattr(parent, "num_kv_heads", parent.num_heads))  # type: ignore[arg-type]
        share = site.out_features // (int(parent.num_heads) + 2 * heads)  # type: ignore[arg-type]
        queries = share * int(parent.num_heads)  # type: ignore[arg-type]
        rows = {"attn.q": queries, "attn.k": share * heads, "attn.v": share * heads}
        yield from with_slices(site, rows, _bias_switch(parent))
    elif attribute == "fc1" and kind == "timm.layers.mlp.GluMlp":
        names = ("mlp.up", "mlp.gate") if parent.gate_last else ("mlp.gate", "mlp.up")
        whole = LinearSite(**{**vars(site), "name": "mlp.gate_up"})
        yield from with_slices(whole, dict.fromkeys(names, site.out_features // 2))
    else:
        yield site


def _bias_switch(attention: nn.Module) -> Switches:
    """Where q and v have biases of their own, timm reads the weight past the layer unless told to add them after."""
    if getattr(attention, "q_bias", None) is None:
        return ()
    return ((attention, "qkv_bias_separate", True),)


def _branches(block: nn.Module, path: str, layer: int, prefix: int) -> Iterator[BranchSite]:
    kind = plain_class(block).__name__
    for number, name in enumerate(("attn", "mlp"), 1):
        host = getattr(block, name, None)
        if not isinstance(host, nn.Module):
            continue
        norm, leaving = getattr(block, f"norm{number}", None), getattr(block, f"drop_path{number}", None)
        entry = norm if kind in PRE_NORM else host if kind in POST_NORM and (kind, name) not in WINDOWED else None
        width = _branch_width(host, norm)
        if width:
            at = f"{path}.{name}"
            ends = {"entry": entry, "exit": leaving if entry is not None else None}
            named = {"name": name, "path": at, "host": host, "host_path": at, "tower": "vision", "layer": layer}
            yield BranchSite(width=width, prefix=prefix, **named, **ends)  # type: ignore[arg-type]
    named = {"name": "block", "path": path, "host": block, "host_path": path, "tower": "vision", "layer": layer}
    stream = next((m._parameters["weight"] for m in block.modules() if is_norm(m)), None)
    yield BranchSite(width=0 if stream is None else stream.numel(), prefix=prefix, **named)  # type: ignore[arg-type]


def _branch_width(sublayer: nn.Module, norm: nn.Module | None) -> int:
    """Return the width of a sublayer's output: of its output layer, or else of a layer as wide as its norm; 0: unknown.

    The last layer that is registered may be another one: CaiT mixes heads and ConViT weighs positions by linear layers.
    """
    if plain_class(sublayer).__name__ in MAPS:
        return 0
    ends = [getattr(sublayer, name) for name in OUTPUTS if isinstance(getattr(sublayer, name, None), nn.Module)]
    if ends:
        return int(ends[0].out_features) if is_linear(ends[0]) else 0
    stream = norm._parameters.get("weight") if norm is not None else None
    widths = [int(module.out_features) for module in sublayer.modules() if is_linear(module)]  # type: ignore[arg-type]
    return stream.numel() if stream is not None and stream.numel() in widths else 0


def _outer_sites(model: nn.Module, modules: dict[str, nn.Module], blocks: list[str]) -> Iterator[Site]:
    """Yield the embedding, and the norms, linear layers and convolutions around the blocks."""
    heads = {id(part) for head in _classifiers(model) for part in head.modules()}
    embedded = False
    for path, module in modules.items():
        if any(path == block or path.startswith(block + ".") for block in blocks):
            continue
        if isinstance(module, nn.Conv2d) and not embedded:
            embedded = True
            yield embed_site(module, path, tower="vision")
        if is_convolution(module):
            yield conv_site(path, module, path, tower="vision", layer=None)
        elif is_norm(module):
            yield norm_site("norm", module, path, tower="vision", layer=None)
        elif is_linear(module) and id(module) not in heads:
            yield linear_site(path, module, path, tower="vision", layer=None)


def _tokens(model: nn.Module, library: str, blocks: tuple[Block, ...]) -> Iterator[SequenceSite]:
    if library not in SEQUENCES or not blocks:
        return
    stack = [model.get_submodule(block.path) for block in blocks]
    patch = model.patch_embed.patch_size  # type: ignore[union-attr]
    yield SequenceSite(
        name="tokens",
        path="tokens",
        host=model,
        host_path="",
        tower="vision",
        width=int(model.embed_dim),  # type: ignore[arg-type]
        blocks=tuple(stack),
        start=int(model.num_prefix_tokens),  # type: ignore[arg-type]
        patch_area=int(patch[0] * patch[1]),  # type: ignore[index]
        extend=extend,
    )


def extend(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """Give ``count`` tokens in front of the patches the rotation by zero (sin 0, cos 1); refuse a mask."""
    if arguments.get("attn_mask") is not None:
        raise ValueError("inserted tokens have no place in an attention mask: call the model without attn_mask")
    rope = arguments.get("rope")
    if rope is None:
        return arguments
    half = rope.shape[-1] // 2
    still = torch.cat([rope.new_zeros(half), rope.new_ones(half)]).expand(*rope.shape[:-2], count, -1)
    return {**arguments, "rope": torch.cat([still, rope], -2)}


def _features(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[FeaturesSite]:
    """Yield the features that enter the head, where there is one head."""
    paths = {id(module): path for path, module in modules.items()}
    heads = _classifiers(model)
    stem = next((module for module in modules.values() if isinstance(module, nn.Conv2d)), None)
    if len(heads) == 1 and stem is not None:
        path = paths[id(heads[0])]
        reader = {"name": "features", "path": "features", "host": heads[0], "host_path": path, "tower": "vision"}
        width = int(getattr(model, "head_hidden_size", model.num_features))  # type: ignore[arg-type]
        yield FeaturesSite(width=width, channels=stem.in_channels, model=model, point="input", **reader)  # type: ignore[arg-type]


def _classifiers(model: nn.Module) -> list[nn.Module]:
    heads = model.get_classifier()  # type: ignore[operator]
    return [head for head in (heads if isinstance(heads, tuple) else (heads,)) if isinstance(head, nn.Module)]


def _heads(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[Site]:
    parts = {id(part) for head in _classifiers(model) for part in head.modules()}
    for path, module in modules.items():
        if id(module) in parts and module._parameters:
            yield parameters_site(module, path, name="head", tower="vision")


def _reason(name: str, library: str, blocks: tuple[Block, ...]) -> str:
    if name == "head":
        return "the model was built without a classifier (num_classes=0)"
    if not blocks:
        return f"{library} has no stack of blocks"
    if name == "tokens":
        return f"the attention of {library} is tied to its grid of positions, or it has several stages"
    return f"the blocks of {library} have no such part, or its layout is not known"
