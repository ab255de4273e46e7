"""transformers: CLIP and SigLIP, whole or one tower, in both layouts of their text model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from mmpeft.anatomies.linear import is_linear, is_norm, linear_site, norm_site, projection_sites, site_name
from mmpeft.injection.anatomy import Anatomy, Block, Tower, own_modules, reader
from mmpeft.injection.graft import plain_class
from mmpeft.injection.sites import BranchSite, EmbedSite, SequenceSite, Site

FAMILIES = ("clip", "siglip")
NO_HEAD = "the model has no classifier of its own"


@reader
def read(model: nn.Module) -> Anatomy | None:
    """Return the anatomy of a CLIP or SigLIP model of transformers."""
    families = (f"transformers.models.{family}.modeling_{family}" for family in FAMILIES)
    if plain_class(model).__module__ not in families:
        return None
    modules = dict(own_modules(model))
    stacks = [path for path in modules if path.endswith("encoder.layers") or path == "layers"]
    return Anatomy(model, "transformers", tuple(_tower(model, modules, stack) for stack in stacks))


def _tower(model: nn.Module, modules: dict[str, Any], stack: str) -> Tower:
    path = stack.removesuffix("encoder.layers").rstrip(".")
    kind = path + type(model).__name__
    name = "vision" if "ision" in kind.rpartition(".")[2] or "vision_model" in path else "text"
    paths = [f"{stack}.{child}" for child in modules[stack]._modules]
    embeddings = getattr(modules[path], "embeddings", None)
    prefix = None if name == "text" else 1 if hasattr(embeddings, "class_embedding") else 0
    blocks = tuple(Block(i, at, tuple(_block_sites(modules[at], at, name, i, prefix))) for i, at in enumerate(paths))
    outer = tuple(_outer_sites(modules, path, name, paths))
    tokens = tuple(_tokens(modules[path], name, path, stack, [modules[at] for at in paths], prefix))
    width = int(modules[paths[0]].layer_norm1.normalized_shape[0])
    missing = {"head": NO_HEAD}
    if not tokens:
        missing["tokens"] = "only a vision transformer takes more tokens at any place"
    return Tower(name, width, blocks, (*outer, *tokens), missing, path)


def _block_sites(block: Any, path: str, tower: str, layer: int, prefix: int | None) -> Iterator[Site]:
    place: dict[str, Any] = {"tower": tower, "layer": layer}
    width = int(block.layer_norm1.normalized_shape[0])
    for name, inner, norm in (("attn", "self_attn", "layer_norm1"), ("mlp", "mlp", "layer_norm2")):
        host, at = getattr(block, inner), f"{path}.{inner}"
        ends = {"entry": getattr(block, norm), "exit": host}
        yield BranchSite(name=name, path=at, host=host, host_path=at, width=width, prefix=prefix, **ends, **place)
    yield BranchSite(name="block", path=path, host=block, host_path=path, width=width, prefix=prefix, **place)
    for inner, module in block.named_modules():
        at = f"{path}.{inner}"
        if is_linear(module):
            yield linear_site(site_name(inner), module, at, **place)
        elif is_norm(module):
            yield norm_site("norm", module, at, **place)


def _outer_sites(modules: dict[str, Any], root: str, tower: str, blocks: list[str]) -> Iterator[Site]:
    for path, module in modules.items():
        if not (not root or path.startswith(root + ".")) or any(path.startswith(block + ".") for block in blocks):
            continue
        if path.endswith("patch_embedding"):
            own: dict[str, Any] = {"name": "embed", "path": path, "host": module, "host_path": path, "tower": tower}
            yield EmbedSite(width=int(module.out_channels), axis=1, **own)
        elif isinstance(module, nn.MultiheadAttention):
            for site in projection_sites(module, path, tower=tower, layer=None):
                yield replace(site, name=site.name.replace("attn.", "pool."))
        elif is_norm(module):
            yield norm_site("norm", module, path, tower=tower, layer=None)


def _tokens(
    root: Any, tower: str, path: str, stack: str, blocks: list[nn.Module], prefix: int | None
) -> Iterator[SequenceSite]:
    embeddings: Any = getattr(root, "embeddings", None)
    patch = getattr(embeddings, "patch_size", None)
    if patch is None or prefix is None:
        return
    yield SequenceSite(
        name="tokens",
        path=f"{path}.tokens".lstrip("."),
        host=blocks[0],
        host_path=stack,
        tower=tower,
        width=int(embeddings.embed_dim),
        blocks=tuple(blocks),
        start=prefix,
        patch_area=int(patch) ** 2,
        extend=keep,
    )


def keep(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """Return a vision layer's arguments as they are: it has neither positions nor a mask to extend."""
    if arguments.get("attention_mask") is not None:
        raise ValueError("inserted tokens have no place in an attention mask: call the model without attention_mask")
    return arguments
