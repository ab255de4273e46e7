"""open_clip: CLIP models with towers ``vision`` and ``text``, their attention of either class, and timm trunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mmpeft.anatomies.anatomy import Anatomy, Joint, own_modules
from mmpeft.anatomies.hosts import parameter, plain_class
from mmpeft.anatomies.layers import is_linear, is_multihead
from mmpeft.anatomies.libraries import timm
from mmpeft.anatomies.libraries.carriers import open_clip_pool
from mmpeft.anatomies.libraries.linear import embed_site, is_norm, linear_site, norm_site, projection_sites, site_name
from mmpeft.anatomies.sites import BranchSite, FeaturesSite, LinearSite, PromptSite, SequenceSite, Site
from mmpeft.anatomies.towers import Block, Tower

NO_HEAD = "a CLIP model has no classifier of its own: mmpeft.zero_shot makes one"
NO_TOKENS = "only a vision transformer over (batch, tokens, width) takes more tokens at any place"
NO_PROMPT = "only open_clip's own text transformer over (batch, length, width) takes prompts"
NO_FEATURES = "the built-in text tower projects inside encode_text: open_clip's CustomTextCLIP has a module for it"


def read(model: Any) -> Anatomy | None:
    """Return the anatomy of an open_clip model."""
    if not any(cls.__module__ == "open_clip.model" for cls in plain_class(model).__mro__):
        return None
    text = "text" if isinstance(getattr(model, "text", None), nn.Module) else ""
    trunk = getattr(model.visual, "trunk", None)
    known = None if trunk is None else timm.read(trunk)
    vision = _tower(model, "vision", "visual") if known is None else known.towers[0].under("visual.trunk")
    if known is not None:
        vision = replace(vision, sites=(*vision.sites, *_features(model, "vision", "visual")))
    joint = Joint(model, encode_image, encode_text, scale, bias)
    return Anatomy(model, "open_clip", (vision, _tower(model, "text", text)), joint)


def encode_image(model: Any, images: Tensor) -> Tensor:
    """Return the projected features of images."""
    features: Tensor = model.encode_image(images)
    return features


def encode_text(model: Any, ids: Tensor) -> Tensor:
    """Return the projected features of texts."""
    features: Tensor = model.encode_text(ids)
    return features


def scale(model: Any) -> Tensor:
    """Return the exponential of the logit scale."""
    return parameter(model, "logit_scale").exp()


def bias(model: Any) -> Tensor | None:
    """Return the logit bias of a model trained with the sigmoid loss."""
    return None if getattr(model, "logit_bias", None) is None else parameter(model, "logit_bias")


def _tower(model: Any, name: str, path: str) -> Tower:
    root: Any = model.get_submodule(path)
    stack = f"{path}.transformer.resblocks".lstrip(".")
    modules: dict[str, Any] = dict(own_modules(model))
    paths = [f"{stack}.{child}" for child in modules[stack]._modules] if stack in modules else []
    blocks = tuple(Block(i, at, tuple(_block_sites(modules[at], at, name, i))) for i, at in enumerate(paths))
    width = int(modules[paths[0]].ln_1.normalized_shape[0]) if paths else 0
    stacked = tuple(modules[at] for at in paths) if getattr(modules.get(stack[:-10]), "batch_first", False) else ()
    outer: list[Site] = list(_outer_sites(modules, path, name, paths))
    if stacked:
        outer.append(_tokens(root, path, stacked) if name == "vision" else _prompt(root, path, stacked))
    outer += _features(model, name, path)
    reasons = {"head": NO_HEAD, "tokens": NO_TOKENS, "prompt": NO_PROMPT, "features": NO_FEATURES}
    if not blocks:
        reasons["attn.q"] = f"{plain_class(root).__name__} has no stack of residual attention blocks"
    present = {site.name for site in outer}
    return Tower(name, width, blocks, tuple(outer), {k: v for k, v in reasons.items() if k not in present}, path)


def _block_sites(block: Any, path: str, tower: str, layer: int) -> Iterator[Site]:
    location: dict[str, Any] = {"tower": tower, "layer": layer}
    prefix = 1 if tower == "vision" else None
    width = int(block.ln_1.normalized_shape[0])
    for number, name in enumerate(("attn", "mlp"), 1):
        host, at = getattr(block, name), f"{path}.{name}"
        ends = {"entry": getattr(block, f"ln_{number}"), "exit": getattr(block, f"ls_{number}")}
        yield BranchSite(name=name, path=at, host=host, host_path=at, width=width, prefix=prefix, **ends, **location)
    yield BranchSite(name="block", path=path, host=block, host_path=path, width=width, prefix=prefix, **location)
    for inner, module in block.named_modules():
        at = f"{path}.{inner}"
        if is_multihead(module) or (plain_class(module).__name__ == "Attention" and hasattr(module, "in_proj_weight")):
            yield from projection_sites(module, at, **location)
        elif is_linear(module) and not inner.endswith("out_proj"):
            yield linear_site(LINEARS.get(inner, site_name(inner)), module, at, **location)
        elif is_norm(module):
            name = "norm" if inner in ("ln_1", "ln_2") else inner
            yield norm_site(name, module, at, **location)


LINEARS: Mapping[str, str] = {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}


def _outer_sites(modules: dict[str, Any], root: str, tower: str, blocks: list[str]) -> Iterator[Site]:
    other = "visual" if tower == "text" else "text"
    for path, module in modules.items():
        inside = not root or path == root or path.startswith(root + ".")
        if not inside or path.split(".")[0] == other or any(path.startswith(block + ".") for block in blocks):
            continue
        if tower == "vision" and path == f"{root}.conv1":
            yield embed_site(module, path, tower=tower)
        elif is_norm(module):
            yield norm_site("norm", module, path, tower=tower, layer=None)
        elif tower == "vision":
            yield from _pool(module, path)


def _pool(module: Any, path: str) -> Iterator[LinearSite]:
    """Yield the projections of an attention pool, which reads their weights past the layers."""
    location: dict[str, Any] = {"tower": "vision", "layer": None}
    if plain_class(module).__name__ == "AttentionPool2d":
        for name, letter in {"pool.q": "q", "pool.k": "k", "pool.v": "v", "pool.out": "c"}.items():
            site = linear_site(name, getattr(module, f"{letter}_proj"), f"{path}.{letter}_proj", **location)
            yield replace(site, carrier=(module, open_clip_pool))
    elif is_multihead(module):
        for site in projection_sites(module, path, **location):
            yield replace(site, name=site.name.replace("attn.", "pool."))


def _tokens(root: Any, path: str, blocks: tuple[nn.Module, ...]) -> SequenceSite:
    patch = root.patch_size
    return SequenceSite(
        name="tokens",
        path=f"{path}.tokens",
        host=blocks[0],
        host_path=f"{path}.transformer.resblocks",
        tower="vision",
        width=int(root.class_embedding.shape[0]),
        blocks=blocks,
        start=1,
        patch_area=int(patch[0] * patch[1]),
        extend=timm.extend,
        norm=root.ln_pre,
    )


def _prompt(root: Any, path: str, blocks: tuple[nn.Module, ...]) -> PromptSite:
    pool = getattr(root, "pool_type", getattr(root, "text_pool_type", ""))
    at = f"{path}.token_embedding".lstrip(".")
    return PromptSite(
        name="prompt",
        path=f"{path}.prompt".lstrip("."),
        host=root.token_embedding,
        host_path=at,
        tower="text",
        width=int(root.token_embedding.weight.shape[1]),
        blocks=blocks,
        start=0 if pool == "last" else 1,
        end_of_text=pool == "argmax",
    )


def _features(model: Any, tower: str, path: str) -> Iterator[FeaturesSite]:
    """Yield the projected features of a tower, where they are the output of a module."""
    own = getattr(model, "text_projection", None)
    projection = own.weight.T if isinstance(own, nn.Linear) else own
    width = int(model.text.output_dim if projection is None else projection.shape[1])
    if path:
        host = model.get_submodule(path)
        channels = 3 if tower == "vision" else None
        at: dict[str, Any] = {"path": f"{path}.features", "host": host, "host_path": path, "tower": tower}
        yield FeaturesSite(name="features", width=width, model=host, channels=channels, **at)
