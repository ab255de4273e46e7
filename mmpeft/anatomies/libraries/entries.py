"""Public methods of whole models, besides ``forward``, by which the libraries' users run a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmpeft.kernels.plain import is_plain
from mmpeft.kernels.private_names import has_hooks

ENTRIES = (
    "forward_features",
    "forward_head",
    "forward_intermediates",
    "get_intermediate_layers",
    "encode_image",
    "encode_text",
)
"""timm's and open_clip's. A model's own parameters (class token, positions) are replaced behind these too."""

FEATURES = "forward_intermediates"
"""The one that returns features from between the blocks (timm)."""


def output_layer(model: nn.Module, options: Mapping[str, Any]) -> nn.Linear | None:
    """Return the layer that makes the logits, where a model of transformers is called to make a loss of them.

    Only a linear layer as torch has it, without edits, hooks or a forward of its own, which somebody else may read.
    """
    ask = getattr(model, "get_output_embeddings", None)
    layer = ask() if callable(ask) and options.get("labels") is not None else None
    if type(layer) is not nn.Linear or has_hooks(layer) or "forward" in vars(layer):
        return None
    return layer if is_plain(layer.weight) else None
