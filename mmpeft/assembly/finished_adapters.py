"""Finished adapters in a pipeline, and what each takes, as the configuration of a drawing says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

import mmpeft
from mmpeft.assembly.diffusion_config import Loaded
from mmpeft.data.config import DataConfig
from mmpeft.data.edges import edges
from mmpeft.data.framing import Framing
from mmpeft.data.pictures import read_picture
from mmpeft.data.transforms import Transform, make_transforms
from mmpeft.edits import ControlBranch, ControlImage, ImagePrompt, Resampler
from mmpeft.heads.denoising import Denoiser
from mmpeft.heads.image_encoder import ImageEncoder

Condition = Tensor | ImagePrompt | ControlImage


def load(pipeline: Any, loaded: Mapping[str, Loaded]) -> None:
    """Load finished adapters into a pipeline and make them active, in this order, each with its scale."""
    for name, adapter in loaded.items():
        mmpeft.load(pipeline, adapter.path, name=name)
    if loaded:
        mmpeft.adapters(pipeline).activate(*loaded, weights=[adapter.scale for adapter in loaded.values()])


def conditions(model: Denoiser, loaded: Mapping[str, Loaded], encoder: str | None, side: int) -> dict[str, Condition]:
    """Return what each adapter takes, for one picture of ``side`` x ``side`` pixels.

    Args:
        model: The pipeline with these adapters.
        loaded: What the user says of each.
        encoder: Of image prompts: a name for ``mmpeft.load_model``.
        side: Height and width in pixels; control images and masks are resized and cut to them.

    Raises:
        ValueError: If guess mode is asked for where there is no ControlNet.
    """
    made: dict[str, Condition] = {}
    prompted = {name: adapter for name, adapter in loaded.items() if adapter.image}
    if prompted:
        assert encoder is not None
        reader = mmpeft.load_model(encoder).to(next(model.parameters()).device)
        prepare = make_transforms(DataConfig(name="digits"), reader)[1]
        made |= {name: _prompt(model, name, adapter, reader, prepare, side) for name, adapter in prompted.items()}
    controlled = {name: adapter for name, adapter in loaded.items() if adapter.control is not None}
    return made | {name: _control(model, name, adapter, side) for name, adapter in controlled.items()}


def _control(model: Denoiser, name: str, adapter: Loaded, side: int) -> Tensor | ControlImage:
    assert adapter.control is not None
    cut = _cut(adapter.control, side)
    image = _placed(edges(cut) if adapter.edges else cut, model)[None]
    if not adapter.guess:
        return image
    if not _has(model, name, ControlBranch):
        raise ValueError(f"load.{name}.guess: true, but {name!r} is no ControlNet")
    return ControlImage(image=image, guess=True)


def _prompt(model: Denoiser, name: str, adapter: Loaded, reader: Any, prepare: Transform, side: int) -> ImagePrompt:
    """Return the image prompt of one adapter; a resampler's has the features of all positions."""
    encoder = ImageEncoder(reader, positions=_has(model, name, Resampler))
    images = torch.stack([prepare(read_picture(path)) for path in adapter.image])
    features = encoder(images.to(next(model.parameters()).device))[None]
    masks = [_placed(_cut(path, side), model)[0] for path in adapter.mask]
    return ImagePrompt(features=features, masks=torch.stack(masks) if masks else None, nothing=encoder.nothing())


def _cut(path: str, side: int) -> Image.Image:
    image = read_picture(path)
    return Framing(side).plain((image.height, image.width)).cut(image)


def _placed(image: Image.Image, model: Denoiser) -> Tensor:
    """Return an image (3, height, width) in [0, 1]."""
    frame = Framing(image.width).plain((image.height, image.width))
    return frame.placed(image, (0.0, 1.0)).to(next(model.parameters()).device)


def _has(model: Denoiser, name: str, kind: type) -> bool:
    return any(isinstance(edit, kind) for edit in model.adapters._edits(name))
