"""Models on disk: the library is recognised by the files that lie there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch

from mmpeft.zoo import diffusers_source, open_clip_source, tiny, transformers_source
from mmpeft.zoo.checkpoint import load_weights
from mmpeft.zoo.request import Request


def load(request: Request) -> Any:
    """Load ``X.safetensors`` beside ``X.json`` (as tools/ writes them), or a folder of a library's.

    Raises:
        ValueError: If nothing is there, or nothing that is known.
    """
    path = Path(request.name)
    if _has_card(path):
        return tiny.build(path.with_suffix(".json"), request)
    if (path / "model_index.json").is_file():
        return diffusers_source.load(request)
    if (path / "config.json").is_file():
        config = json.loads((path / "config.json").read_text())
        return transformers_source.load(request) if "model_type" in config else _load_timm(path, config, request)
    if (path / open_clip_source.CONFIG).is_file():
        return open_clip_source.load_folder(request)
    raise ValueError(
        f"model {request.name!r}: expected NAME.safetensors with NAME.json beside it, or a folder with config.json "
        f"(timm, transformers), {open_clip_source.CONFIG} or model_index.json (diffusers)"
    )


def load_tokenizer(request: Request) -> Any:
    """Return the tokenizer of a model on disk: ``X.safetensors`` with its card, or a folder of transformers.

    Raises:
        ValueError: If nothing is there, or nothing with a text tower.
    """
    path = Path(request.name)
    if _has_card(path):
        return tiny.load_tokenizer(path.with_suffix(".json"))
    if (path / "config.json").is_file():
        return transformers_source.load_tokenizer(request)
    if (path / open_clip_source.CONFIG).is_file():
        return open_clip_source.load_folder_tokenizer(request)
    raise ValueError(
        f"model {request.name!r}: expected NAME.safetensors with NAME.json beside it, or a folder of transformers with "
        f"config.json and a tokenizer, or with {open_clip_source.CONFIG}"
    )


def _has_card(path: Path) -> bool:
    return path.suffix == ".safetensors" and path.is_file() and path.with_suffix(".json").is_file()


def _load_timm(path: Path, config: dict[str, Any], request: Request) -> Any:
    """Load a folder that timm's ``save_for_hf`` wrote: config.json and model.safetensors.

    For another image size timm reads the weights itself: it resamples position embeddings, and what else depends on it.
    """
    request.refuse("task")
    stored = config["num_classes"]
    classes = stored if request.num_classes is None else request.num_classes
    overlay = {name: value for name, value in config["pretrained_cfg"].items() if name in _PREPROCESSING}
    options = {**config.get("model_args", {}), **request.options, "num_classes": classes}
    resampled = request.image_size is not None and request.with_weights
    if request.image_size is not None:
        overlay["input_size"] = (3, request.image_size, request.image_size)
        options |= {"img_size": request.image_size} if "img_size" in options else {}
    if resampled:
        overlay |= {"file": str(path / "model.safetensors"), "num_classes": stored}
    with torch.device(request.device):
        how: dict[str, Any] = {"pretrained": resampled, "pretrained_cfg_overlay": overlay}
        model = timm.create_model(config["architecture"], **how, **options)
    if request.with_weights and not resampled:
        fresh = _head_names(model) if request.num_classes is not None else []
        load_weights(model, path / "model.safetensors", fresh=fresh)
    return model.eval()


def _head_names(model: Any) -> list[str]:
    head = {id(value) for value in model.get_classifier().parameters()}
    return [name for name, value in model.named_parameters() if id(value) in head]


_PREPROCESSING = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "fixed_input_size")
