"""Tiny parts of diffusion pipelines, always with the same weights, and inputs for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
SIZE: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
LARGE: dict[str, Any] = {
    **SIZE,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 8 * 6 + 20,
}
"""As SDXL is built."""


def make_unet(large: bool = False) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**(LARGE if large else SIZE)).eval()


def make_text_encoder(width: int = 24, projection: int = 0) -> Any:
    torch.manual_seed(width)
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=60,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=projection or 8,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def make_tokenizer(directory: Path) -> Any:
    directory.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), "<</w>"]
    (directory / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer.from_pretrained(str(directory))


def make_pipeline(directory: Path, large: bool = False) -> Any:
    """A Stable Diffusion pipeline, or with ``large`` an SDXL one, without its autoencoder."""
    parts: dict[str, Any] = {"unet": make_unet(large), "text_encoder": make_text_encoder()}
    parts |= {"tokenizer": make_tokenizer(directory / "tokenizer"), "vae": None}
    parts["scheduler"] = diffusers.DDIMScheduler()
    if large:
        parts |= {"text_encoder_2": make_text_encoder(20, 20), "tokenizer_2": make_tokenizer(directory / "tokenizer_2")}
        return diffusers.StableDiffusionXLPipeline(**parts)
    return diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)


def inputs(large: bool = False, batch: int = 2) -> dict[str, Any]:
    """Arguments of a UNet."""
    made = torch.Generator().manual_seed(3)
    found: dict[str, Any] = {"sample": torch.randn(batch, 4, 8, 8, generator=made), "timestep": torch.tensor(7)}
    found["encoder_hidden_states"] = torch.randn(batch, 5, 24, generator=made)
    if large:
        time_ids = torch.randint(0, 64, (batch, 6), generator=made)
        found["added_cond_kwargs"] = {"text_embeds": torch.randn(batch, 20, generator=made), "time_ids": time_ids}
    return found


@torch.no_grad()
def denoise(unet: Any, large: bool = False, **changed: Any) -> Tensor:
    output: Tensor = unet(**inputs(large) | changed).sample
    return output


@torch.no_grad()
def encode(encoder: Any) -> Tensor:
    """The last states of a text."""
    ids = torch.tensor([[0, 5, 9, 12, 1]])
    states: Tensor = encoder(ids).last_hidden_state
    return states
