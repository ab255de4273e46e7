"""Any model: its linear, convolution and normalisation layers, in blocks where it has stacks of like modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, own_modules, parameters_site
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.layers import is_convolution, is_linear, is_multihead, is_transposed
from mmpeft.anatomies.libraries.linear import (
    conv_site,
    is_norm,
    linear_site,
    norm_site,
    projection_sites,
    site_name,
    slow,
)
from mmpeft.anatomies.libraries.past_layers import reads, through_layers
from mmpeft.anatomies.libraries.stacks import root_of, stacks, tower_names
from mmpeft.anatomies.sites import Site
from mmpeft.anatomies.towers import Block, Tower

HEADS = frozenset(
    (
        *("lm_head", "score", "classifier", "qa_outputs", "cls", "classification_head", "embed_out", "pre_classifier"),
        *("head", "heads", "fc", "proj_out", "predictions", "qa_classifier", "decoder_head", "ctc_head", "logits_proj"),
        *("vocab_transform", "vocab_layer_norm", "vocab_projector", "generator_lm_head", "cls_classifier"),
        *("distillation_classifier", "output_layer", "class_labels_classifier", "bbox_predictor"),
    )
)
"""What libraries call a model's head, a child of the whole model."""
EXPERTS = (
    "the routed experts' weights are one 3-D parameter of all experts, which no linear layer holds: adapt attn.*, "
    "put an adapter at the whole branch mlp, or unfreeze the experts"
)
MISSING = dict.fromkeys(
    ("attn", "mlp", "tokens"), "a generic anatomy knows single layers only, not how they are connected"
)
NO_HEAD = "no layer of the model is called as heads are"
FEED_FORWARD = ("mlp.up", "mlp.gate", "mlp.down")


def read(model: nn.Module) -> Anatomy:
    """Return the anatomy of any model: one tower ``model``, or one for each part that holds a stack of blocks."""
    modules = dict(own_modules(model))
    groups = stacks(modules) or {"": []}
    *others, last = groups
    roots = {parent: root_of(parent, _all_but(groups, parent)) for parent in others} | {last: ""}
    names = dict(zip(groups, tower_names([*groups]), strict=True))
    apart = [root for root in roots.values() if root]
    towers = (generic_tower(names[at], modules, roots[at], blocks, apart) for at, blocks in groups.items())
    return Anatomy(model, "generic", tuple(towers))


def _all_but(groups: Mapping[str, list[str]], parent: str) -> list[str]:
    return [block for other, blocks in groups.items() if other != parent for block in blocks]


def generic_tower(
    name: str, modules: Mapping[str, nn.Module], path: str, blocks: Sequence[str], others: Sequence[str]
) -> Tower:
    """Return the tower of the module at ``path`` with these blocks; what is below ``others`` is of other towers."""
    apart = [other for other in others if other != path and not path.startswith(f"{other}.")]
    heads = [at for at in modules if not path and at in HEADS and next(modules[at].parameters(), None) is not None]
    parts = _parts(modules, path, {*blocks}, {*apart}, {*heads} - {*blocks})
    drawn = tuple(_block(modules, at, parts[at], name, index) for index, at in enumerate(blocks))
    inside_heads = [at for head in heads for at in parts[head]]
    around = [at for at in modules if at in {*parts[""], *inside_heads}]
    outer = (*_sites(modules, around, "", name, None), *_head_sites(modules, inside_heads, name))
    present = {site.name for site in outer} | {site.name for block in drawn for site in block.sites}
    reasons = {**MISSING, "head": NO_HEAD, **{key: reason for block in drawn for key, reason in block.missing.items()}}
    return Tower(name, 0, drawn, outer, {key: reason for key, reason in reasons.items() if key not in present}, path)


def _parts(modules: Mapping[str, nn.Module], root: str, *kinds: set[str]) -> dict[str, list[str]]:
    """Return the paths below a root by the outermost of certain modules that they are in; "" for those in none."""
    wanted = set().union(*kinds)
    parts: dict[str, list[str]] = {"": [], **{at: [] for at in wanted}}
    for path in modules:
        if not root or path == root or path.startswith(f"{root}."):
            names = path.split(".")
            around = (".".join(names[: end + 1]) for end in range(len(names)))
            parts[next((at for at in around if at in wanted), "")].append(path)
    return parts


def _block(modules: Mapping[str, nn.Module], path: str, inside: Sequence[str], tower: str, index: int) -> Block:
    sites = tuple(_sites(modules, inside, path, tower, index))
    present = {site.name for site in sites}
    missing = FEED_FORWARD if any(is_routed(modules[at]) for at in inside) else ()
    return Block(index, path, sites, {name: EXPERTS for name in missing if name not in present})


def is_routed(module: nn.Module) -> bool:
    """Whether a module holds the weights of all experts of a layer in one parameter."""
    return any(tensor is not None and tensor.ndim == 3 for tensor in module._parameters.values()) and (
        "xperts" in plain_class(module).__name__
    )


def _sites(
    modules: Mapping[str, nn.Module], paths: Sequence[str], block: str, tower: str, layer: int | None
) -> Iterator[Site]:
    """Yield the sites of single layers, named by their paths below their block."""
    location: dict[str, Any] = {"tower": tower, "layer": layer}
    for path in paths:
        module, inner = modules[path], path[len(block) :].lstrip(".")
        parent = modules.get(path.rpartition(".")[0])
        read = parent is not None and path.rpartition(".")[2] in reads(parent)
        switches = slow(_around(modules, path))
        site: Site | None = None
        if is_linear(module) or is_transposed(module):
            site = linear_site(site_name(inner) if inner else "linear", module, path, **location)
        elif is_norm(module):
            site = norm_site(inner or "norm", module, path, **location)
        elif is_convolution(module):
            site = conv_site(inner or "conv", module, path, **location)
        elif is_multihead(module):
            for projection in projection_sites(module, path, **location):
                yield replace(projection, switches=switches)
        elif read:
            site = parameters_site(module, path, name=inner, tower=tower)
        if site is not None:
            carrier = (parent, through_layers) if read and parent is not None else None
            yield replace(site, layer=layer, switches=switches, carrier=carrier)


def _around(modules: Mapping[str, nn.Module], path: str) -> list[nn.Module]:
    """Return the module at a path, and those around it."""
    parts = path.split(".") if path else []
    return [modules[at] for end in range(len(parts) + 1) if (at := ".".join(parts[:end])) in modules]


def _head_sites(modules: Mapping[str, nn.Module], paths: Sequence[str], tower: str) -> Iterator[Site]:
    for path in paths:
        if modules[path]._parameters:
            yield parameters_site(modules[path], path, name="head", tower=tower)
