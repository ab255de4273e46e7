"""Models of open_clip: ``open_clip/ARCH/PRETRAINED``, or ``open_clip/ARCH/PATH`` for a local checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mmpeft.optional import require
from mmpeft.settings import nearest
from mmpeft.zoo.checkpoint import load_checkpoint
from mmpeft.zoo.hub import fetching
from mmpeft.zoo.request import Request

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""What the hub's folders of open_clip hold."""


def load(request: Request) -> Any:
    """Build an open_clip model; without ``/PRETRAINED`` only ``pretrained=False`` or the meta device make sense.

    Raises:
        ValueError: If open_clip has no such architecture or weights, or they can't be fetched.
        ImportError: If open_clip is not installed.
    """
    open_clip = require("open_clip", "mmpeft[clip]")
    request.refuse("num_classes", "task", "revision")
    architecture, path = request.split_path()
    architecture, _, tag = architecture.partition("/")
    _refuse_unknown(open_clip, architecture, request)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if path is None and (tag or request.with_weights) and tag not in tags:
        raise ValueError(f"model 'open_clip/{request.name}': {architecture} has no weights {tag!r}{nearest(tag, tags)}")
    options = {"device": request.device, **request.options}
    if request.image_size is not None:
        options["force_image_size"] = request.image_size
    with fetching(f"open_clip/{request.name}"), torch.device(request.device):
        model = open_clip.create_model(architecture, (tag or None) if request.with_weights else None, **options)
    if path is not None and request.with_weights:
        load_checkpoint(model, path)
    return model.eval()


def load_folder(request: Request) -> Any:
    """Build the model of a folder in the hub's layout: open_clip_config.json, and the weights beside it.

    Raises:
        ValueError: If the configuration describes no model, or the weights are not there or don't fit it.
        ImportError: If open_clip is not installed.
    """
    open_clip = require("open_clip", "mmpeft[clip]")
    request.refuse("num_classes", "task", "revision")
    folder = Path(request.name)
    weights = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if request.with_weights and not weights:
        raise ValueError(f"model {request.name!r}: {CONFIG} has no weights beside it: {' or '.join(WEIGHTS)}")
    options = {"device": request.device, "force_image_size": request.image_size, **request.options}
    try:
        with fetching(f"open_clip/{request.name}"), torch.device(request.device):
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False, **options)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"model {request.name!r}: {CONFIG} describes no model of open_clip: {error}") from error
    if request.with_weights:
        load_checkpoint(model, weights[0])
    return model.eval()


def load_folder_tokenizer(request: Request) -> Any:
    """Return the tokenizer that a folder's open_clip_config.json names; one of transformers' has to lie beside it."""
    return require("open_clip", "mmpeft[clip]").get_tokenizer(f"local-dir:{request.name}")


def load_tokenizer(request: Request) -> Any:
    """Return the tokenizer that open_clip has for an architecture.

    Raises:
        ValueError: If open_clip has no such architecture, or its tokenizer can't be fetched.
        ImportError: If open_clip is not installed.
    """
    open_clip = require("open_clip", "mmpeft[clip]")
    request.refuse("revision")
    architecture = request.name.partition("/")[0]
    _refuse_unknown(open_clip, architecture, request)
    with fetching(f"open_clip/{request.name}"):
        return open_clip.get_tokenizer(architecture)


def _refuse_unknown(open_clip: Any, architecture: str, request: Request) -> None:
    if architecture not in open_clip.list_models():
        hint = nearest(architecture, open_clip.list_models())
        raise ValueError(f"model 'open_clip/{request.name}': open_clip has no {architecture!r}{hint}")
