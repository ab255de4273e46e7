"""The original names of a UNet's modules, against diffusers' conversion from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_diffusion import LARGE, SIZE, diffusers

from mmpeft.formats.diffusion.native_names import native_names

SIZES: dict[str, dict[str, Any]] = {
    "tiny": SIZE,
    "tiny_xl": LARGE,
    "sd_1.5": {"cross_attention_dim": 768},
    "sdxl": {
        **LARGE,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "layers_per_block": 2,
        "cross_attention_dim": 2048,
    },
}


@pytest.mark.parametrize("size", SIZES)
def test_they_are_those_that_diffusers_converts_from(size: str) -> None:
    """The whole UNet, renamed and converted back by diffusers, has each tensor where it was."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**SIZES[size])
    names, state = native_names(unet), unet.state_dict()
    renamed = {}
    for key, value in state.items():
        path, _, name = key.rpartition(".")
        renamed[f"model.diffusion_model.{names[path]}.{name}"] = value
    assert len(renamed) == len(state)
    back = convert_ldm_unet_checkpoint(renamed, dict(unet.config))
    assert back.keys() == state.keys()
    assert all(back[key] is value for key, value in state.items())
