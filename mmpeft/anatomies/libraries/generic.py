"""Any model: its linear, convolution and normalisation layers, in blocks where it has a stack of like modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, own_modules
from mmpeft.anatomies.layers import is_convolution, is_linear
from mmpeft.anatomies.libraries.linear import Switches, conv_site, is_norm, linear_site, norm_site, site_name
from mmpeft.anatomies.sites import Site
from mmpeft.anatomies.towers import Block, Tower

MISSING = dict.fromkeys(
    ("attn", "mlp", "tokens", "head"), "a generic anatomy knows single layers only, not how they are connected"
)


FAST = nn.TransformerEncoderLayer
"""In eval mode it reads its parts' weights and calls none of them, unless its activation is unknown to it (0)."""


def read(model: nn.Module) -> Anatomy:
    """Return the anatomy of any model: one tower, ``model``."""
    modules = dict(own_modules(model))
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
    fast = {id(m): layer for _, layer in own_modules(module) if isinstance(layer, FAST) for m in layer.modules()}
    for inner, child in own_modules(module):
        at = f"{path}.{inner}".strip(".")
        switches = _slow(fast[id(child)]) if id(child) in fast else ()
        if is_linear(child):
            site = linear_site(site_name(inner) if inner else "linear", child, at, tower="model", layer=layer)
            yield replace(site, switches=switches)
        elif is_norm(child):
            yield replace(norm_site(inner or "norm", child, at, tower="model", layer=layer), switches=switches)
        elif is_convolution(child):
            yield conv_site(inner or "conv", child, at, tower="model", layer=layer)


def _slow(layer: nn.TransformerEncoderLayer) -> Switches:
    return ((layer, "activation_relu_or_gelu", 0),)
