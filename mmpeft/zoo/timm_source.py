"""Models of timm: ``timm/NAME.TAG``, ``timm/NAME`` for the default tag, ``timm/NAME/PATH`` for a local checkpoint."""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from mmpeft.settings import nearest
from mmpeft.zoo.checkpoint import load_checkpoint
from mmpeft.zoo.hub import fetching
from mmpeft.zoo.request import Request


def load(request: Request) -> nn.Module:
    """Build a timm model, with its pretrained weights unless the request says otherwise.

    Raises:
        ValueError: If timm has no such model or tag, or the weights can't be fetched.
    """
    request.refuse("task")
    architecture, path = request.split_path()
    if path is not None:
        return _load_checkpoint(architecture, path, request)
    _refuse_unknown(request)
    overlay: dict[str, Any] = {}
    if request.image_size is not None:
        overlay["input_size"] = (3, request.image_size, request.image_size)
    if request.revision is not None:
        overlay["hf_hub_id"] = f"{_hub_id(request.name)}@{request.revision}"
    options = dict(request.options)
    if request.num_classes is not None:
        options["num_classes"] = request.num_classes
    with fetching(f"timm/{request.name}"), torch.device(request.device):
        model = timm.create_model(
            request.name, pretrained=request.with_weights, pretrained_cfg_overlay=overlay or None, **options
        )
    return model.eval()


def _load_checkpoint(architecture: str, path: Path, request: Request) -> nn.Module:
    """Build an architecture and copy the weights of a local checkpoint into it, but for a new head's."""
    request.refuse("revision", "image_size")
    plain = replace(request, name=architecture, pretrained=False)
    _refuse_unknown(plain)
    model: Any = load(plain)
    if request.with_weights:
        head = {id(value) for value in model.get_classifier().parameters()} if request.fresh_head else set()
        load_checkpoint(model, path, fresh=[name for name, value in model.named_parameters() if id(value) in head])
    return model.eval()


def _refuse_unknown(request: Request) -> None:
    architecture, _, tag = request.name.partition(".")
    if not timm.is_model(architecture):
        near = get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.6)
        raise ValueError(f"model 'timm/{request.name}': timm has no {architecture!r}{nearest(architecture, near)}")
    tags = [name.partition(".")[2] for name in timm.list_models(f"{architecture}.*", pretrained=True)]
    if tag and tag not in tags:
        raise ValueError(f"model 'timm/{request.name}': {architecture} has no tag {tag!r}{nearest(tag, tags)}")
    if not tags and request.with_weights:
        raise ValueError(f"model 'timm/{request.name}': timm has no weights for it; pretrained=False builds it without")


def _hub_id(name: str) -> str:
    config = timm.get_pretrained_cfg(name)
    if config is None or config.hf_hub_id is None:
        raise ValueError(f"model 'timm/{name}': its weights are not on the Hugging Face hub: no revision can be pinned")
    return f"{config.hf_hub_id}{config.architecture}.{config.tag}" if config.hf_hub_id == "timm/" else config.hf_hub_id
