"""LoRA as diffusers, kohya and ComfyUI write it: written, read back, and loaded by diffusers, it computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import denoise, diffusers, encode, make_pipeline, make_unet
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmpeft
from mmpeft.formats import convert, export

FILES = {"diffusers_lora": "lora", "kohya": "lora.safetensors", "comfyui": "lora.safetensors"}
EVERYWHERE = ["attn.*", "cross.*", "mlp.*"]
METHODS: dict[str, Any] = {
    "lora": {"method": "lora", "rank": 4, "alpha": 6, "targets": EVERYWHERE},
    "dora": {"method": "dora", "rank": 2, "alpha": 3, "targets": ["attn.q", "mlp.down"]},
    "slices": {"method": "lora", "rank": 2, "alpha": 5, "targets": ["mlp.up", "attn.v"], "towers": "unet"},
    "rslora": {"method": "lora", "rank": 4, "alpha": 3, "rank_stabilized": True},
    "mixed": [
        {"method": "lora", "rank": 2, "alpha": 4, "targets": "attn.q"},
        {"method": "lora", "rank": 3, "targets": "attn.v", "towers": "unet"},
    ],
}


def outputs(pipeline: Any, large: bool) -> list[torch.Tensor]:
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if large else [])]
    return [denoise(pipeline.unet, large), *map(encode, encoders)]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)


def saved(tmp_path: Path, shaken: Any, methods: Any, large: bool) -> list[torch.Tensor]:
    """Write an adapter to ``ours``, and return what it computes."""
    pipeline = make_pipeline(tmp_path, large)
    frozen = outputs(pipeline, large)
    adapters = mmpeft.adapt(pipeline, methods)
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    found = outputs(pipeline, large)
    assert (found[0] - frozen[0]).abs().max() > 1e-3
    return found


@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", FILES)
def test_it_comes_back(tmp_path: Path, shaken: Any, format: str, method: str, large: bool) -> None:
    expected = saved(tmp_path, shaken, METHODS[method], large)
    base = make_pipeline(tmp_path, large)
    export(tmp_path / "ours", tmp_path / FILES[format], format, base=base)
    convert(tmp_path / FILES[format], tmp_path / "back", format, base=base)
    mmpeft.load(base, tmp_path / "back")
    same(outputs(base, large), expected)


@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", ["diffusers_lora", "kohya"])
def test_a_pipeline_of_diffusers_loads_it(tmp_path: Path, shaken: Any, format: str, method: str, large: bool) -> None:
    if format == "kohya" and method == "dora":
        pytest.skip("diffusers leaves the magnitudes in kohya's files out")
    expected = saved(tmp_path, shaken, METHODS[method], large)
    pipeline = make_pipeline(tmp_path, large)
    export(tmp_path / "ours", tmp_path / FILES[format], format, base=pipeline)
    pipeline.load_lora_weights(str(tmp_path / FILES[format]))
    same(outputs(pipeline, large), expected)
