"""open_clip: CLIP models with towers ``vision`` and ``text``, their attention of either class, and timm trunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mmpeft.anatomies import timm
from mmpeft.anatomies.linear import is_linear, is_norm, linear_site, norm_site, projection_sites, site_name
from mmpeft.injection.anatomy import Anatomy, Block, Tower, own_modules, reader
from mmpeft.injection.graft import plain_class
from mmpeft.injection.sites import BranchSite, EmbedSite, SequenceSite, Site

NO_HEAD = "a CLIP model has no classifier of its own"


@reader
def read(model: Any) -> Anatomy | None:
    """Return the anatomy of an open_clip model."""
    if not any(cls.__module__ == "open_clip.model" for cls in plain_class(model).__mro__):
        return None
    text = "text" if isinstance(getattr(model, "text", None), nn.Module) else ""
    trunk = getattr(model.visual, "trunk", None)
    known = None if trunk is None else timm.read(trunk)
    vision = known.towers[0].under("visual.trunk") if known else _tower(model, "vision", "visual")
    return Anatomy(model, "open_clip", (vision, _tower(model, "text", text)))


def _tower(model: nn.Module, name: str, path: str) -> Tower:
    root: Any = model.get_submodule(path)
    stack = f"{path}.transformer.resblocks".lstrip(".")
    modules: dict[str, Any] = dict(own_modules(model))
    paths = [f"{stack}.{child}" for child in modules[stack]._modules] if stack in modules else []
    blocks = tuple(Block(i, at, tuple(_block_sites(modules[at], at, name, i))) for i, at in enumerate(paths))
    outer = tuple(_outer_sites(modules, path, name, paths))
    tokens = tuple(_tokens(root, name, path, [modules[at] for at in paths]))
    missing = {"head": NO_HEAD}
    if not blocks:
        missing["attn.q"] = f"{plain_class(root).__name__} has no stack of residual attention blocks"
    if not tokens:
        missing["tokens"] = "only a vision transformer over (batch, tokens, width) takes more tokens at any place"
    width = int(modules[paths[0]].ln_1.normalized_shape[0]) if paths else 0
    return Tower(name, width, blocks, (*outer, *tokens), missing, path)


def _block_sites(block: Any, path: str, tower: str, layer: int) -> Iterator[Site]:
    place: dict[str, Any] = {"tower": tower, "layer": layer}
    prefix = 1 if tower == "vision" else None
    width = int(block.ln_1.normalized_shape[0])
    for number, name in enumerate(("attn", "mlp"), 1):
        host, at = getattr(block, name), f"{path}.{name}"
        ends = {"entry": getattr(block, f"ln_{number}"), "exit": getattr(block, f"ls_{number}")}
        yield BranchSite(name=name, path=at, host=host, host_path=at, width=width, prefix=prefix, **ends, **place)
    yield BranchSite(name="block", path=path, host=block, host_path=path, width=width, prefix=prefix, **place)
    for inner, module in block.named_modules():
        at = f"{path}.{inner}"
        if hasattr(module, "in_proj_weight"):
            yield from projection_sites(module, at, **place)
        elif is_linear(module) and not inner.endswith("out_proj"):
            yield linear_site(LINEARS.get(inner, site_name(inner)), module, at, **place)
        elif is_norm(module):
            name = "norm" if inner in ("ln_1", "ln_2") else inner
            yield norm_site(name, module, at, **place)


LINEARS: Mapping[str, str] = {"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}


def _outer_sites(modules: dict[str, Any], root: str, tower: str, blocks: list[str]) -> Iterator[Site]:
    other = "visual" if tower == "text" else "text"
    for path, module in modules.items():
        inside = not root or path == root or path.startswith(root + ".")
        if not inside or path.split(".")[0] == other or any(path.startswith(block + ".") for block in blocks):
            continue
        if tower == "vision" and path == f"{root}.conv1":
            own: dict[str, Any] = {"name": "embed", "path": path, "host": module, "host_path": path, "tower": tower}
            yield EmbedSite(width=int(module.out_channels), axis=1, **own)
        elif is_norm(module):
            yield norm_site("norm", module, path, tower=tower, layer=None)


def _tokens(root: Any, tower: str, path: str, blocks: list[nn.Module]) -> Iterator[SequenceSite]:
    if tower != "vision" or not blocks or not getattr(root.transformer, "batch_first", False):
        return
    patch = root.patch_size
    yield SequenceSite(
        name="tokens",
        path=f"{path}.tokens",
        host=blocks[0],
        host_path=f"{path}.transformer.resblocks",
        tower=tower,
        width=int(root.class_embedding.shape[0]),
        blocks=tuple(blocks),
        start=1,
        patch_area=int(patch[0] * patch[1]),
        extend=timm.extend,
    )
