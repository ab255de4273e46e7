"""Models of Hugging Face transformers: ``hf/OWNER/NAME``, of the class that its configuration names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mmpeft.optional import require
from mmpeft.zoo.request import Request, fetch_error


def load(request: Request) -> nn.Module:
    """Build a transformers model; code from the hub is never run, and weights are read from safetensors only.

    The class is the one named in the model's own config; with ``num_classes`` it is the image classifier of its family.

    Raises:
        ValueError: If the model can't be fetched, or needs code that is not part of transformers.
        ImportError: If transformers is not installed.
    """
    transformers = require("transformers", "mmpeft[llm]")
    request.refuse("image_size")
    where: dict[str, Any] = {"revision": request.revision or "main", "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(request.name, **where)
        if request.num_classes is not None:
            config.num_labels = request.num_classes
        kind = _class_of(transformers, config, request)
        if request.with_weights:
            fresh_head = request.num_classes is not None
            where |= {"use_safetensors": True, "ignore_mismatched_sizes": fresh_head, **request.options}
            return kind.from_pretrained(request.name, config=config, **where).to(request.device).eval()
    except OSError as error:
        raise fetch_error(f"hf/{request.name}", error) from error
    with torch.device(request.device):
        return kind._from_config(config, **request.options).eval()


def _class_of(transformers: Any, config: Any, request: Request) -> Any:
    if request.num_classes is not None:
        return transformers.AutoModelForImageClassification._model_mapping[type(config)]
    if not config.architectures:
        return transformers.AutoModel._model_mapping[type(config)]
    name = config.architectures[0]
    if not hasattr(transformers, name):
        raise ValueError(
            f"model 'hf/{request.name}': class {name} is not part of transformers; remote code is never run"
        )
    return getattr(transformers, name)
