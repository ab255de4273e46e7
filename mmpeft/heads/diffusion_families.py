"""What differs between the pipelines of diffusers: how texts are encoded, and how the denoiser is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmpeft.kernels.private_names import flux_packed, flux_positions, flux_unpacked
from mmpeft.settings import nearest

Text = dict[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A kind of pipeline.

    ``encode(pipeline, prompts)`` returns tensors of the prompts, batch first; ``predict(pipeline, noisy, times, text,
    sizes)`` what the denoiser says, shaped like ``noisy``; ``unpack(pipeline, latents, size)`` the pipeline's latents
    as a map.
    """

    denoiser: str
    encode: Callable[[Any, list[str]], Text]
    predict: Callable[[Any, Tensor, Tensor, Text, Tensor], Tensor]
    unpack: Callable[[Any, Tensor, tuple[int, int]], Tensor] = lambda pipeline, latents, size: latents
    negative: bool = True
    """Whether a pipeline takes a negative prompt."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What else a pipeline is called with: PixArt would draw in sizes of its own choice."""


def family_of(pipeline: Any) -> Family:
    """Return the family of a pipeline.

    Raises:
        ValueError: If it is none of them.
    """
    kind = type(pipeline).__name__
    if kind not in FAMILIES:
        raise ValueError(f"model: a {kind} can't be trained here{nearest(kind, FAMILIES)}")
    return FAMILIES[kind]


def _encode_sd(pipeline: Any, prompts: list[str]) -> Text:
    return {"hidden": pipeline.encode_prompt(prompts, pipeline.device, 1, False)[0]}


def _predict_sd(pipeline: Any, noisy: Tensor, times: Tensor, text: Text, sizes: Tensor) -> Tensor:
    prediction: Tensor = pipeline.unet(noisy, times, encoder_hidden_states=text["hidden"], return_dict=False)[0]
    return prediction


def _encode_pooled(pipeline: Any, prompts: list[str]) -> Text:
    """Of SDXL and SD3: states of all encoders side by side, and a pooled vector."""
    more = {"prompt_2": None} | ({"prompt_3": None} if hasattr(pipeline, "text_encoder_3") else {})
    options = {"device": pipeline.device, "do_classifier_free_guidance": False, **more}
    hidden, _, pooled, _ = pipeline.encode_prompt(prompt=prompts, **options)
    return {"hidden": hidden, "pooled": pooled}


def _predict_sdxl(pipeline: Any, noisy: Tensor, times: Tensor, text: Text, sizes: Tensor) -> Tensor:
    added = {"text_embeds": text["pooled"], "time_ids": sizes.to(noisy)}
    conditions = {"encoder_hidden_states": text["hidden"], "added_cond_kwargs": added}
    prediction: Tensor = pipeline.unet(noisy, times, **conditions, return_dict=False)[0]
    return prediction


def _predict_sd3(pipeline: Any, noisy: Tensor, times: Tensor, text: Text, sizes: Tensor) -> Tensor:
    conditions = {"encoder_hidden_states": text["hidden"], "pooled_projections": text["pooled"]}
    prediction: Tensor = pipeline.transformer(hidden_states=noisy, timestep=times, **conditions, return_dict=False)[0]
    return prediction


def _encode_flux(pipeline: Any, prompts: list[str]) -> Text:
    hidden, pooled, _ = pipeline.encode_prompt(prompts, None, pipeline.device)
    return {"hidden": hidden, "pooled": pooled}


def _predict_flux(pipeline: Any, noisy: Tensor, times: Tensor, text: Text, sizes: Tensor) -> Tensor:
    """Flux takes 2 x 2 places as one, times in [0, 1], and if distilled the guidance (3.5 as in its own use)."""
    count, _, height, width = noisy.shape
    model = pipeline.transformer
    like: dict[str, Any] = {"device": noisy.device, "dtype": noisy.dtype}
    prediction = model(
        hidden_states=flux_packed(pipeline, noisy),
        timestep=times / 1000,
        guidance=torch.full((count,), 3.5, **like) if model.config.guidance_embeds else None,
        encoder_hidden_states=text["hidden"],
        pooled_projections=text["pooled"],
        txt_ids=torch.zeros(text["hidden"].shape[1], 3, **like),
        img_ids=flux_positions(pipeline, noisy),
        return_dict=False,
    )[0]
    factor = pipeline.vae_scale_factor
    return flux_unpacked(pipeline, prediction, (height * factor, width * factor))


def _encode_pixart(pipeline: Any, prompts: list[str]) -> Text:
    hidden, mask, _, _ = pipeline.encode_prompt(prompts, False, device=pipeline.device)
    return {"hidden": hidden, "mask": mask}


def _predict_pixart(pipeline: Any, noisy: Tensor, times: Tensor, text: Text, sizes: Tensor) -> Tensor:
    """The second half of PixArt's channels is a variance, which is not trained."""
    model = pipeline.transformer
    added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if model.config.sample_size == 128:
        added = {"resolution": sizes[:, 4:].to(noisy), "aspect_ratio": (sizes[:, 4:5] / sizes[:, 5:]).to(noisy)}
    conditions = {"encoder_hidden_states": text["hidden"], "encoder_attention_mask": text["mask"], "timestep": times}
    prediction: Tensor = model(noisy, **conditions, added_cond_kwargs=added, return_dict=False)[0]
    return prediction[:, : noisy.shape[1]]


FAMILIES = {
    "StableDiffusionPipeline": Family("unet", _encode_sd, _predict_sd),
    "StableDiffusionXLPipeline": Family("unet", _encode_pooled, _predict_sdxl),
    "StableDiffusion3Pipeline": Family("transformer", _encode_pooled, _predict_sd3),
    "FluxPipeline": Family("transformer", _encode_flux, _predict_flux, flux_unpacked, negative=False),
    "PixArtAlphaPipeline": Family(
        "transformer",
        _encode_pixart,
        _predict_pixart,
        options={"use_resolution_binning": False, "clean_caption": False},
    ),
}
