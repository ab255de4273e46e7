"""What all readers share: linear layers told by their attributes, and the field's names for their usual names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from mmpeft.anatomies.layers import is_transposed
from mmpeft.anatomies.libraries.carriers import multihead, open_clip_attention
from mmpeft.anatomies.sites import ConvSite, EmbedSite, LinearSite, NormSite, Switch

Switches = tuple[Switch, ...]

CROSS = re.compile(r"cross|EncDec|encoder_attn$|encoder_attention$|attn2$|multihead_attn$")
"""Paths of attention modules that look at another sequence than their own."""
POOL = re.compile(r"pool|(^|\.)head\.attention$|probe")
"""Paths of attention modules that pool a sequence."""
NAMES = {
    **dict.fromkeys(("q_proj", "query", "q", "to_q", "wq", "q_lin", "query_proj"), "attn.q"),
    **dict.fromkeys(("k_proj", "key", "k", "to_k", "wk", "k_lin", "key_proj"), "attn.k"),
    **dict.fromkeys(("v_proj", "value", "v", "to_v", "wv", "v_lin", "value_proj"), "attn.v"),
    **dict.fromkeys(("qkv", "qkv_proj", "in_proj", "c_attn", "query_key_value", "Wqkv"), "attn.qkv"),
    **dict.fromkeys(("o_proj", "out_proj", "proj", "o", "wo", "dense", "out_lin"), "attn.out"),
    **dict.fromkeys(("fc1", "up_proj", "c_fc", "fc1_x", "w3", "lin1", "dense_h_to_4h"), "mlp.up"),
    **dict.fromkeys(("gate_proj", "fc1_g", "w1"), "mlp.gate"),
    **dict.fromkeys(("fc2", "down_proj", "w2", "lin2", "dense_4h_to_h"), "mlp.down"),
}
"""Site names by the names that libraries give their linear layers."""


def linear_site(name: str, module: nn.Module, path: str, *, tower: str, layer: int | None) -> LinearSite:
    """Return the site of a whole linear layer, GPT-2's transposed ones included."""
    transposed = is_transposed(module)
    if transposed:
        ins, outs = module.get_parameter("weight").shape
    else:
        ins, outs = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    return LinearSite(
        name=name,
        path=path,
        host=module,
        host_path=path,
        tower=tower,
        layer=layer,
        in_features=ins,
        out_features=outs,
        transposed=transposed,
    )


def conv_site(name: str, module: nn.Module, path: str, *, tower: str, layer: int | None) -> ConvSite:
    """Return the site of a convolution."""
    location: dict[str, Any] = {"path": path, "host": module, "host_path": path, "tower": tower, "layer": layer}
    out, each, height, width = module.get_parameter("weight").shape
    return ConvSite(name=name, in_channels=each, out_channels=out, kernel=(height, width), **location)


def slow(around: Iterable[nn.Module]) -> Switches:
    """Return what makes torch's own encoder layers and encoders among the modules around a part call that part.

    In eval mode they read their parts' weights and call none of them: unless the activation is unknown to the layer
    (0), and the encoder makes no nested tensors.
    """
    made: list[Switch] = []
    for module in around:
        if isinstance(module, nn.TransformerEncoderLayer):
            made.append((module, "activation_relu_or_gelu", 0))
        elif isinstance(module, nn.TransformerEncoder):
            made.append((module, "use_nested_tensor", False))
    return tuple(made)


def with_slices(whole: LinearSite, rows: dict[str, int], switches: Switches = ()) -> Iterator[LinearSite]:
    """Yield the site of a fused projection, then a slice of it for each name in ``rows``, in order.

    ``{"attn.q": 768, "attn.k": 768, "attn.v": 768}`` are the rows of a ViT-B's qkv. A slice's address is that of a
    sibling: ``blocks.0.attn.q`` beside ``blocks.0.attn.qkv``.
    """
    whole = replace(whole, switches=switches)
    yield whole
    parent, start = whole.path.rpartition(".")[0], 0
    for name, count in rows.items():
        path = f"{parent}.{name.partition('.')[2]}"
        yield replace(whole, name=name, path=path, out_features=count, rows=slice(start, start + count))
        start += count


def projection_sites(attention: Any, path: str, *, tower: str, layer: int | None) -> Iterator[LinearSite]:
    """Yield the projections of an attention class that reads ``in_proj_weight`` itself: q, k, v as rows of it, and out.

    They are called ``attn``, ``cross`` where the attention looks at another sequence, ``pool`` in a pooling head.
    """
    width = int(attention.in_proj_weight.shape[1])
    carry: Any = multihead if isinstance(attention, nn.MultiheadAttention) else open_clip_attention
    kind = "cross" if CROSS.search(path) else "pool" if POOL.search(path) else "attn"
    shared: dict[str, Any] = {"tower": tower, "layer": layer, "carrier": (attention, carry), "in_features": width}
    whole = LinearSite(
        name=f"{kind}.qkv",
        path=f"{path}.in_proj".lstrip("."),
        host=attention,
        host_path=path,
        out_features=3 * width,
        weight="in_proj_weight",
        bias="in_proj_bias",
        **shared,
    )
    yield from with_slices(whole, dict.fromkeys((f"{kind}.q", f"{kind}.k", f"{kind}.v"), width))
    out, at = attention.out_proj, f"{path}.out_proj".lstrip(".")
    yield LinearSite(name=f"{kind}.out", path=at, host=out, host_path=at, out_features=width, **shared)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer with a weight."""
    return "Norm" in type(module).__name__ and isinstance(module._parameters.get("weight"), nn.Parameter)


def norm_site(name: str, module: nn.Module, path: str, *, tower: str, layer: int | None) -> NormSite:
    """Return the site of a normalisation layer; those over images in NCHW order have their channels on axis 1."""
    channels_first = (
        isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)) or "2d" in type(module).__name__
    )
    width = module.weight.numel()  # type: ignore[operator]
    axis = 1 if channels_first else -1
    activated = not isinstance(getattr(module, "act", nn.Identity()), nn.Identity)
    location: dict[str, Any] = {"path": path, "host": module, "host_path": path, "tower": tower, "layer": layer}
    return NormSite(name=name, width=width, axis=axis, activated=activated, **location)


def embed_site(module: nn.Module, path: str, *, tower: str) -> EmbedSite:
    """Return the site of the convolution that turns an image's patches into vectors."""
    width = int(module.out_channels)  # type: ignore[arg-type]
    return EmbedSite(name="embed", path=path, host=module, host_path=path, tower=tower, width=width, axis=1)


def site_name(path: str) -> str:
    """Return the field's name for a linear layer at this path inside its block, or the path when it has none.

    Layers of an attention to another sequence are ``cross``, those of experts that see every token ``mlp.shared``.
    """
    *containers, last = path.split(".")
    name = NAMES.get(last, path)
    if name.startswith("attn."):
        if not any("att" in container.lower() for container in containers):
            return path
        return name.replace("attn.", "cross.") if any(map(CROSS.search, containers)) else name
    shared = any("shared_expert" in container for container in containers)
    return name.replace("mlp.", "mlp.shared.") if shared and name.startswith("mlp.") else name
