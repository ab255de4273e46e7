"""The tiny pretrained models shipped with the package: docs/embedded.md says what they are and how they were made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mmpeft.optional import require
from mmpeft.zoo import transformers_source
from mmpeft.zoo.cards import find_card, read_card
from mmpeft.zoo.checkpoint import load_weights
from mmpeft.zoo.request import Request


def load(request: Request) -> nn.Module | Any:
    """Build an embedded model; `tiny/vit` without ``num_classes`` returns features (batch, width).

    `tiny/sd` is a diffusers pipeline, which is no ``nn.Module`` itself.

    Raises:
        ValueError: If there is no such model, or options change the shape of its weights.
        ImportError: If its library is not installed.
    """
    return build(find_card(request.name), request)


def build(card_path: Path, request: Request) -> nn.Module | Any:
    """Build the model of a card (JSON) and load the weights beside it.

    Raises:
        ValueError: If the card is of no known library, or the weights don't fit.
    """
    request.refuse("revision", "image_size")
    card = read_card(card_path)
    if card.get("library") not in _BUILDERS:
        raise ValueError(f"{card_path}: library {card.get('library')!r} is not one of {', '.join(_BUILDERS)}")
    return _BUILDERS[card["library"]](card, card_path, request)


def _build_vit(card: dict[str, Any], card_path: Path, request: Request) -> VisionTransformer:
    """timm reads the preprocessing from ``pretrained_cfg``, as for its own checkpoints."""
    request.refuse("task")
    classes = request.num_classes or 0
    with torch.device(request.device):
        model = VisionTransformer(**card["architecture"], num_classes=classes, **request.options)
    if request.with_weights:
        load_weights(model, card_path.with_suffix(".safetensors"), fresh=("head.weight", "head.bias"))
    preprocessing = {name: _tuple(value) for name, value in card["preprocessing"].items()}
    settings = {
        "architecture": card_path.stem,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    for name in ("pretrained_cfg", "default_cfg"):
        setattr(model, name, {**settings, **preprocessing})
    return model.eval()


def _build_clip(card: dict[str, Any], card_path: Path, request: Request) -> nn.Module:
    """open_clip keeps the preprocessing in ``visual.preprocess_cfg``, as for its own checkpoints."""
    open_clip = require("open_clip", "mmpeft[clip]")
    request.refuse("num_classes", "task")
    with torch.device(request.device):
        model: nn.Module = open_clip.CustomTextCLIP(**card["architecture"], **request.options)
    if request.with_weights:
        load_weights(model, card_path.with_suffix(".safetensors"))
    open_clip.set_model_preprocess_cfg(model, {name: _tuple(value) for name, value in card["preprocessing"].items()})
    return model.eval()


def _load_pipeline(card: dict[str, Any], card_path: Path, request: Request) -> Any:
    """The folder that diffusers wrote lies beside the card; its 16-bit weights are loaded as 32-bit ones."""
    diffusers = require("diffusers", "mmpeft[diffusion]")
    request.refuse("num_classes", "task")
    if not request.with_weights:
        raise ValueError(f"model 'tiny/{request.name}': a pipeline has no form without weights; load it, on the CPU")
    folder = card_path.parent / card["folder"]
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, use_safetensors=True, **request.options)
    return pipeline.to(request.device)


def _load_language_model(card: dict[str, Any], card_path: Path, request: Request) -> nn.Module:
    """The folder that transformers wrote lies beside the card; its 16-bit weights are loaded as 32-bit ones."""
    return transformers_source.load(replace(request, name=str(card_path.parent / card["folder"])))


_BUILDERS: dict[str, Callable[[dict[str, Any], Path, Request], Any]] = {
    "timm": _build_vit,
    "open_clip": _build_clip,
    "diffusers": _load_pipeline,
    "transformers": _load_language_model,
}


def load_tokenizer(card_path: Path) -> Any:
    """Return the tokenizer of a language model, or open_clip's own with the merges that lie beside the card.

    Raises:
        ValueError: If the model has no text tower, or is a pipeline, which holds its own tokenizer.
        ImportError: If its library is not installed.
    """
    card = read_card(card_path)
    if card["library"] == "transformers":
        return transformers_source.load_tokenizer(Request(str(card_path.parent / card["folder"])))
    if card["library"] == "diffusers":
        raise ValueError(f"model {card_path.stem!r} is a pipeline, which holds its own: load_model(...).tokenizer")
    if "tokenizer" not in card:
        raise ValueError(f"model {card_path.stem!r} has no text tower, so no tokenizer")
    tokenizer = require("open_clip", "mmpeft[clip]").SimpleTokenizer
    files = card["tokenizer"]
    return tokenizer(bpe_path=str(card_path.parent / files["merges"]), context_length=files["context_length"])


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
