"""Pipelines of diffusers: ``diffusers/OWNER/NAME``."""

from __future__ import annotations

from typing import Any

from mmpeft.optional import require
from mmpeft.zoo.hub import fetching
from mmpeft.zoo.request import Request


def load(request: Request) -> Any:
    """Load a diffusion pipeline; code from the hub is never run, and weights are read from safetensors only.

    Raises:
        ValueError: If the pipeline can't be fetched, or is asked for without weights.
        ImportError: If diffusers is not installed.
    """
    diffusers = require("diffusers", "mmpeft[diffusion]")
    request.refuse("num_classes", "task", "image_size")
    if not request.with_weights:
        raise ValueError(f"model 'diffusers/{request.name}': a pipeline has no form without weights; build its parts")
    where = {"revision": request.revision, "use_safetensors": True, "trust_remote_code": False}
    with fetching(f"diffusers/{request.name}"):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(request.name, **where, **request.options)
    return pipeline.to(request.device)
