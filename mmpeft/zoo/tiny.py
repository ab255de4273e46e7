"""The tiny pretrained models shipped with the package: docs/embedded.md says what they are and how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer

from mmpeft.settings import nearest
from mmpeft.zoo.checkpoint import load_weights
from mmpeft.zoo.request import Request

WEIGHTS = Path(__file__).parent / "weights"


def models() -> list[str]:
    """Return the names of the embedded models, ready for `load_model`."""
    return [f"tiny/{path.stem.removeprefix('tiny_')}" for path in sorted(WEIGHTS.glob("tiny_*.json"))]


def load(request: Request) -> VisionTransformer:
    """Build an embedded model; without ``num_classes`` it returns features (batch, width).

    Raises:
        ValueError: If there is no such model, or options change the shape of its weights.
    """
    if f"tiny/{request.name}" not in models():
        raise ValueError(f"model 'tiny/{request.name}' is not embedded{nearest(f'tiny/{request.name}', models())}")
    request.refuse("revision", "image_size")
    return build_vit(WEIGHTS / f"tiny_{request.name}.json", request)


def build_vit(card_path: Path, request: Request) -> VisionTransformer:
    """Build the timm VisionTransformer of a card (JSON) and load the weights beside it.

    timm reads the preprocessing from ``pretrained_cfg``, as for its own checkpoints.
    """
    card: dict[str, Any] = json.loads(card_path.read_text())
    classes = request.num_classes or 0
    with torch.device(request.device):
        model = VisionTransformer(**card["architecture"], num_classes=classes, **request.options)
    if request.with_weights:
        load_weights(model, card_path.with_suffix(".safetensors"), fresh=("head.weight", "head.bias"))
    preprocessing = {name: _tuple(value) for name, value in card["preprocessing"].items()}
    own = {"architecture": card_path.stem, "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head"}
    for name in ("pretrained_cfg", "default_cfg"):
        setattr(model, name, {**own, **preprocessing})
    return model.eval()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
