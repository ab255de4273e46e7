"""What the components of a diffusers pipeline are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENCODER, TOKENIZER = "text_encoder", "tokenizer"


def tokenizers(components: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokenizer of each text encoder, by the encoder's label: that of ``text_encoder_2`` is tokenizer_2."""
    labels = {label: label.replace(ENCODER, TOKENIZER) for label in components if label.startswith(ENCODER)}
    return {label: components[name] for label, name in labels.items() if components.get(name) is not None}
