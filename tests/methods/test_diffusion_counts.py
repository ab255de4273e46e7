"""Trainable parameters of diffusion methods on the full-size UNets of SD 1.5 and SDXL, as published."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

import mmpeft

EVERY = ("attn.*", "cross.*")
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CONFIGS: dict[str, dict[str, Any]] = {"sd15": {"cross_attention_dim": 768}, "sdxl": SDXL}
PLUS = {"method": "ip_adapter", "features": 1280, "tokens": 16, "resampler": True}
EXPECTED: list[tuple[str, dict[str, Any], int]] = [
    ("sd15", {"method": "controlnet"}, 361_279_120),
    ("sdxl", {"method": "controlnet"}, 1_251_014_160),
    ("sd15", {"method": "t2i_adapter"}, 77_369_280),
    ("sd15", {"method": "t2i_adapter", "channels": 1}, 77_000_640),
    ("sd15", {"method": "t2i_adapter", "light": True, "depth": 4}, 18_689_200),
    ("sd15", {"method": "custom_diffusion"}, 19_169_280),
    ("sd15", {"method": "custom_diffusion", "queries": True}, 43_962_560),
    ("sdxl", {"method": "custom_diffusion"}, 340_787_200),
    ("sd15", {"method": "ip_adapter"}, 22_319_616),
    ("sd15", PLUS, 49_087_488),
    ("sdxl", {"method": "ip_adapter"}, 349_188_096),
    ("sdxl", {**PLUS, "heads": 20, "width": 1280}, 423_748_864),
    ("sd15", {"method": "lora", "rank": 4, "targets": EVERY}, 797_184),
    ("sd15", {"method": "lora", "rank": 16, "targets": EVERY}, 3_188_736),
    ("sd15", {"method": "lora", "rank": 4, "targets": ["cross.k", "cross.v"]}, 4 * 49_536),
    ("sdxl", {"method": "lora", "rank": 1, "targets": EVERY}, 1_451_520),
    ("sd15", {"method": "full_fine_tuning"}, 859_520_964),
]


@cache
def unet(name: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**CONFIGS[name])


@pytest.mark.parametrize(("name", "method", "count"), EXPECTED)
def test_counts_are_the_published_ones(name: str, method: dict[str, Any], count: int) -> None:
    adapters = mmpeft.adapt(unet(name), method)
    assert adapters.report().trainable == count
    adapters.remove()


def test_transformers_have_the_published_counts() -> None:
    from diffusers import DiTTransformer2DModel, FluxTransformer2DModel, PixArtTransformer2DModel

    with torch.device("meta"):
        pixart = PixArtTransformer2DModel(caption_channels=4096, cross_attention_dim=1152)
        dit = DiTTransformer2DModel()
        flux = FluxTransformer2DModel()
    for model, targets, count in (
        (pixart, EVERY, 516_096),
        (dit, ("attn.*",), 258_048),
        (flux, ("attn.*", "context.q", "context.k", "context.v", "context.out"), 6_537_216 // 4),
    ):
        assert mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=targets)).report().trainable == count


def test_a_new_word_is_a_row_of_its_own() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072))
    method = {"method": "textual_inversion", "words": ["<a>", "<b>"], "vectors": 2, "ids": [49408, 49409, 49410, 49411]}
    assert mmpeft.adapt(text, method).report().trainable == 4 * 768
