"""Any model: its linear and normalisation layers, in blocks where it has a stack of like modules."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from mmpeft.anatomies.linear import is_linear, is_norm, linear_site, norm_site, site_name
from mmpeft.injection.anatomy import Anatomy, Block, Tower, reader
from mmpeft.injection.sites import Site

MISSING = dict.fromkeys(
    ("attn", "mlp", "tokens", "head"), "a generic anatomy knows linear and norm layers only, not how they are connected"
)


@reader
def read(model: nn.Module) -> Anatomy:
    """Return the anatomy of any model: one tower, ``model``."""
    modules = {path: m for path, m in model.named_modules() if path.split(".")[0] != "mmpeft"}
    stack = max(
        (path for path, m in modules.items() if _is_stack(m)), key=lambda p: len(modules[p]._modules), default=None
    )
    blocks: tuple[Block, ...] = ()
    if stack is not None:
        paths = [f"{stack}.{name}".lstrip(".") for name in modules[stack]._modules if name != "mmpeft"]
        blocks = tuple(Block(i, path, tuple(_sites(modules[path], path, i))) for i, path in enumerate(paths))
    inside = {site.path for block in blocks for site in block.sites}
    outer = tuple(site for site in _sites(model, "", None) if site.path not in inside)
    return Anatomy(model, "generic", (Tower("model", 0, blocks, outer, MISSING),))


def _is_stack(module: nn.Module) -> bool:
    children = [child for name, child in module._modules.items() if name != "mmpeft"]
    composite = all(child is not None and child._modules for child in children)
    return isinstance(module, (nn.ModuleList, nn.Sequential)) and len(children) > 1 and composite


def _sites(module: nn.Module, path: str, layer: int | None) -> Iterator[Site]:
    for inner, child in module.named_modules():
        if inner.split(".")[0] == "mmpeft":
            continue
        at = f"{path}.{inner}".strip(".")
        if is_linear(child):
            yield linear_site(site_name(inner) if inner else "linear", child, at, tower="model", layer=layer)
        elif is_norm(child):
            yield norm_site(inner or "norm", child, at, tower="model", layer=layer)
