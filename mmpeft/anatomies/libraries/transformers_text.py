"""transformers: language models - decoders, encoders, both - and those with eyes: a vision tower and a projector."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, own_modules, parameters_site
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.layers import is_linear, is_transposed
from mmpeft.anatomies.libraries.linear import embed_site, is_norm, linear_site, norm_site
from mmpeft.anatomies.libraries.transformers_ladder import ladder_sites
from mmpeft.anatomies.libraries.transformers_layouts import FAMILIES, BlockLayout, layouts
from mmpeft.anatomies.sites import BranchSite, FeaturesSite, LadderSite, LinearSite, Site, WordsSite
from mmpeft.anatomies.towers import Block, Tower
from mmpeft.kernels.rows import Interleaved, Rows

HEADS = ("lm_head", "score", "classifier", "qa_outputs", "cls", "classification_head", "embed_out")
"""Names that transformers gives a model's head."""
PROJECTORS = ("multi_modal_projector", "connector", "merger")
"""Names of what turns an image's features into words."""
EXPERTS = (
    "the routed experts' weights are one 3-D parameter of all experts, which no linear layer holds: adapt attn.*, "
)
EXPERTS += "put an adapter at the whole branch mlp, or unfreeze the experts"
MISSING = {
    "tokens": "a language model's tokens are words: learned ones go in front of them, at 'words'",
    "prompt": "only the text tower of a model with two takes learned words in the place of a text's own",
    "head": "the model was built without a head: load it for a task",
    "features": "the model was built without a head, which is what features enter",
    "ladder": "only towers of the families that docs/methods/language.md lists can be made narrow",
    "words": "only a tower over words has them",
    "cross": "only a decoder behind an encoder has cross-attention",
}


@dataclass(frozen=True, eq=False)
class Root:
    """The module of a tower, by its path, with the layout of its blocks."""

    path: str
    module: Any
    layout: BlockLayout
    reader: Any = None
    """Of an encoder the decoder behind it."""

    @property
    def tower(self) -> str:
        """The tower's name."""
        decodes = getattr(self.module, "is_decoder", False) or "Decoder" in plain_class(self.module).__name__
        return self.layout.tower or ("decoder" if decodes else "encoder")


def read(model: nn.Module) -> Anatomy | None:
    """Return the anatomy of a language model of transformers, and of its vision tower and projector if it has them."""
    if _family(model) not in FAMILIES:
        return None
    modules: dict[str, Any] = dict(own_modules(model))
    roots = [Root(path, m, layout) for path, m in modules.items() for layout in _layouts(m) if _has(m, layout.stack)]
    if not roots:
        return None
    decoder = next((root.module for root in roots if root.tower == "decoder" and not root.layout.tower), None)
    roots = [replace(root, reader=decoder) if root.tower == "encoder" else root for root in roots]
    projectors = [path for path in modules if path.rpartition(".")[2] in PROJECTORS]
    apart = {root.path: root for root in roots[:-1]}
    inside = [*apart, *projectors]
    towers = [_tower(root, modules, path, _outside(modules, path, inside)) for path, root in apart.items()]
    towers += [_projector(path, modules) for path in projectors]
    towers += [_tower(roots[-1], modules, "", _outside(modules, "", inside))]
    return Anatomy(model, "transformers", tuple(towers))


def _family(module: nn.Module) -> str:
    home = plain_class(module).__module__.split(".")
    return home[2] if home[:2] == ["transformers", "models"] else ""


def _layouts(module: Any) -> tuple[BlockLayout, ...]:
    family = _family(module)
    return layouts(family, module.config) if family in FAMILIES and hasattr(module, "config") else ()


def _has(module: nn.Module, path: str) -> bool:
    inner: Any = module
    for part in path.split("."):
        inner = inner._modules.get(part)
        if inner is None:
            return False
    return bool(path)


def _outside(modules: Mapping[str, Any], path: str, towers: list[str]) -> list[str]:
    """Return the paths below a tower's that belong to no other tower."""
    others = [name for name in towers if name != path and not path.startswith(f"{name}.")]
    below = [name for name in modules if _under(name, path)]
    return [name for name in below if not any(_under(name, other) for other in others)]


def _under(path: str, prefix: str) -> bool:
    return not prefix or path == prefix or path.startswith(f"{prefix}.")


def _tower(root: Root, modules: Mapping[str, Any], path: str, inside: list[str]) -> Tower:
    stack = f"{root.path}.{root.layout.stack}".lstrip(".")
    children = [f"{stack}.{name}" for name in modules[stack]._modules]
    paths = children[: _read(modules[""].config, root, len(children))]
    location = {"tower": root.tower}
    blocks = tuple(
        Block(i, at, tuple(_block_sites(modules[at], at, root.layout, location | {"layer": i})))
        for i, at in enumerate(paths)
    )
    heads = [name for name in HEADS if name in inside] if not path else []
    rest = [name for name in inside if not any(_under(name, other) for other in (*children, *heads))]
    outer = (
        *_outer_sites(modules, rest, location),
        *_words(root, location),
        *_ladder(root, [modules[at] for at in paths], location),
        *_heads(root, modules, heads, location),
    )
    present = {site.name for site in outer} | {site.name for block in blocks for site in block.sites}
    reasons = MISSING | dict.fromkeys(("mlp.up", "mlp.gate", "mlp.down") if _routed(modules.values()) else (), EXPERTS)
    missing = {name: reason for name, reason in reasons.items() if name not in present}
    return Tower(root.tower, _width(blocks), blocks, outer, missing, path)


def _read(config: Any, root: Root, count: int) -> int:
    """Return how many blocks the model reads: LLaVA takes an image's features in front of the last one."""
    layer = getattr(config, "vision_feature_layer", None)
    return range(count + 1)[layer] if root.tower == "vision" and isinstance(layer, int) else count


def _routed(modules: Iterable[nn.Module]) -> bool:
    return any(name == "experts" for module in modules for name in module._modules)


def _width(blocks: tuple[Block, ...]) -> int:
    return next(site.width for site in blocks[0].sites if isinstance(site, BranchSite))


def _block_sites(block: Any, path: str, layout: BlockLayout, location: dict[str, Any]) -> Iterator[Site]:
    linear = [
        site
        for inner, module in block.named_modules()
        for site in _linear_sites(block, inner, module, path, layout, location)
    ]
    width = next(site.out_features for site in linear if site.name == "attn.out")
    yield from _branches(block, path, layout, width, location)
    yield BranchSite(name="block", path=path, host=block, host_path=path, width=width, **location)
    yield from linear
    for inner, module in block.named_modules():
        if is_norm(module):
            name = "norm" if module.weight.numel() == width else inner
            yield norm_site(name, module, f"{path}.{inner}", **location)


def _branches(block: Any, path: str, layout: BlockLayout, width: int, location: dict[str, Any]) -> Iterator[BranchSite]:
    modules = {inner: module for inner, module in block.named_modules() if inner}
    for branch in layout.branches:
        host, source = modules.get(branch.host), modules.get(branch.source)
        if host is None:
            continue
        entry = next((modules[name] for name in branch.entry.split("|") if name in modules), None)
        yield BranchSite(
            name=branch.name,
            path=f"{path}.{branch.name if branch.source else branch.host}",
            host=host,
            host_path=f"{path}.{branch.host}",
            source=source,
            entry=entry or source or host,
            exit=modules.get(branch.exit) if branch.exit else host,
            norm=modules.get(branch.norm),
            width=width,
            parallel=layout.parallel,
            **location,
        )


def _linear_sites(
    block: Any, inner: str, module: Any, path: str, layout: BlockLayout, location: dict[str, Any]
) -> Iterator[LinearSite]:
    """Yield the site of a linear layer, and of what is known to be fused in it."""
    at = f"{path}.{inner}"
    if not (is_linear(module) or is_transposed(module)):
        return
    site = linear_site(inner, module, at, **location)
    names = (name for end, name in layout.linears.items() if f".{inner}".endswith(f".{end}"))
    site = replace(site, name=next(names, inner))
    yield site
    parent = block.get_submodule(inner.rpartition(".")[0])
    rows: dict[str, Rows] = {}
    if site.name == "attn.qkv":
        rows = _attention_rows(parent, site.out_features, layout.by_head)
    elif site.name == "mlp.gate_up":
        half = site.out_features // 2
        rows = {"mlp.gate": slice(0, half), "mlp.up": slice(half, 2 * half)}
    for name, span in rows.items():
        beside = f"{at.rpartition('.')[0]}.{name.partition('.')[2]}"
        yield replace(site, name=name, path=beside, out_features=_count(span), rows=span)


def _attention_rows(attention: Any, outs: int, by_head: bool) -> dict[str, Rows]:
    """Return the rows of q, k and v in a fused weight; with grouped queries there are fewer heads of k and v."""
    heads = int(getattr(attention, "num_heads", 0) or attention.config.num_attention_heads)
    pairs = int(getattr(attention, "num_kv_heads", 0) or getattr(attention, "num_key_value_heads", 0) or heads)
    width = outs // (heads + 2 * pairs)
    groups = pairs if by_head else 1
    sizes = [count * width // groups for count in (heads, pairs, pairs)]
    ends = [sum(sizes[: index + 1]) for index in range(3)]
    parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    spans = [Interleaved(groups, part) if by_head else part for part in parts]
    return dict(zip(("attn.q", "attn.k", "attn.v"), spans, strict=True))


def _count(rows: Rows) -> int:
    part = rows if isinstance(rows, slice) else rows.part
    return (part.stop - part.start) * (1 if isinstance(rows, slice) else rows.groups)


def _outer_sites(modules: Mapping[str, Any], paths: list[str], location: dict[str, Any]) -> Iterator[Site]:
    """Yield the linear layers, norms and patch embeddings around the blocks."""
    for path in paths:
        module = modules[path]
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            yield embed_site(module, path, **location)
        elif is_linear(module):
            yield linear_site(path, module, path, layer=None, **location)
        elif is_norm(module):
            yield norm_site("norm", module, path, layer=None, **location)


def _words(root: Root, location: dict[str, Any]) -> Iterator[WordsSite]:
    if not root.layout.words:
        return
    embedding = root.module.get_submodule(root.layout.words)
    yield WordsSite(
        name="words",
        path=f"{root.path}.words".lstrip("."),
        host=root.module,
        host_path=root.path,
        embedding=embedding,
        reader=root.reader,
        width=int(embedding.weight.shape[1]),
        **location,
    )


def _ladder(root: Root, blocks: list[nn.Module], location: dict[str, Any]) -> Iterator[LadderSite]:
    below = location | {"path": f"{root.path}.ladder".lstrip("."), "host_path": root.path}
    return ladder_sites(_family(root.module), root.module, root.layout.stack, blocks, root.reader, below)


def _heads(root: Root, modules: Mapping[str, Any], heads: list[str], location: dict[str, Any]) -> Iterator[Site]:
    """Yield the parameters of the head, and the features that enter it."""
    for head in heads:
        parts = [path for path in modules if _under(path, head)]
        first = next((modules[path] for path in parts if is_linear(modules[path])), None)
        if first is None:  # taken away: a head of ours is in its place
            continue
        reader: dict[str, Any] = {"host": modules[head], "host_path": head, "model": root.module, "point": "input"}
        yield FeaturesSite(name="features", path="features", width=int(first.in_features), **reader, **location)
        for path in parts:
            if modules[path]._parameters:
                yield parameters_site(modules[path], path, name="head", **location)


def _projector(path: str, modules: Mapping[str, Any]) -> Tower:
    inside = [name for name in modules if _under(name, path)]
    sites = tuple(_outer_sites(modules, inside, {"tower": "projector"}))
    width = next((site.out_features for site in reversed(sites) if isinstance(site, LinearSite)), 0)
    reason = "a projector has no blocks"
    return Tower("projector", width, (), sites, dict.fromkeys(("attn", "mlp", "attn.q", "mlp.up"), reason), path)
