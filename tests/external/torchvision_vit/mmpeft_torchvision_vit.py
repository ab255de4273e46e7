"""The map of torchvision's vision transformers, such as ``vit_b_16``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from mmpeft.anatomies import (
    Anatomy,
    Block,
    BranchSite,
    FeaturesSite,
    SequenceSite,
    Site,
    Tower,
    embed_site,
    linear_site,
    norm_site,
    parameters_site,
    plain_class,
    projection_sites,
)

STACK = "encoder.layers"


def read(model: Any) -> Anatomy | None:
    """Return the map of a torchvision vision transformer; None for any other model."""
    if plain_class(model).__module__ != "torchvision.models.vision_transformer":
        return None
    stack = model.get_submodule(STACK).named_children()
    blocks = tuple(
        Block(i, f"{STACK}.{name}", tuple(block_sites(block, f"{STACK}.{name}", i)))
        for i, (name, block) in enumerate(stack)
    )
    return Anatomy(model, "torchvision", (Tower("vision", model.hidden_dim, blocks, tuple(outer_sites(model))),))


def block_sites(block: Any, path: str, layer: int) -> Iterator[Site]:
    """Yield the sites of a block: x + dropout(attention(ln_1(x))), then x + mlp(ln_2(x))."""
    place: dict[str, Any] = {"tower": "vision", "layer": layer}
    ends = {"attn": ("self_attention", block.ln_1, block.dropout), "mlp": ("mlp", block.ln_2, block.mlp)}
    for name, (attribute, entry, exit) in ends.items():
        at: dict[str, Any] = {"path": f"{path}.{attribute}", "host_path": f"{path}.{attribute}", **place}
        host, width = block.get_submodule(attribute), block.ln_1.normalized_shape[0]
        yield BranchSite(name=name, host=host, width=width, entry=entry, exit=exit, prefix=1, **at)
    yield BranchSite(name="block", path=path, host=block, host_path=path, width=width, prefix=1, **place)
    yield from projection_sites(block.self_attention, f"{path}.self_attention", **place)
    yield linear_site("mlp.up", block.mlp[0], f"{path}.mlp.0", **place)
    yield linear_site("mlp.down", block.mlp[3], f"{path}.mlp.3", **place)
    yield norm_site("norm", block.ln_1, f"{path}.ln_1", **place)
    yield norm_site("norm", block.ln_2, f"{path}.ln_2", **place)


def outer_sites(model: Any) -> Iterator[Site]:
    """Yield the sites around the blocks: embedding, tokens, last norm, pooled features and head."""
    yield embed_site(model.conv_proj, "conv_proj", tower="vision")
    yield norm_site("norm", model.encoder.ln, "encoder.ln", tower="vision", layer=None)
    root: dict[str, Any] = {"tower": "vision", "width": model.hidden_dim}
    yield SequenceSite(
        name="tokens",
        path="tokens",
        host=model,
        host_path="",
        blocks=tuple(model.encoder.layers),
        start=1,
        patch_area=model.patch_size**2,
        extend=unchanged,
        **root,
    )
    at: dict[str, Any] = {"path": "features", "host": model.heads, "host_path": "heads", "point": "input"}
    yield FeaturesSite(name="features", model=model, channels=3, **at, **root)
    for path, module in model.heads.named_modules(prefix="heads"):
        if isinstance(module, nn.Linear):
            yield parameters_site(module, path, name="head", tower="vision")


def unchanged(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """A block takes nothing but tokens: more of them change no other argument."""
    return arguments
