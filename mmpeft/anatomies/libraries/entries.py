"""Public methods of whole models, besides ``forward``, by which the libraries' users run a model."""

from __future__ import annotations

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
