"""``mmpeft export`` and ``import`` of formats that name the parts of a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mmpeft
from mmpeft.cli import main

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from tiny_diffusion import denoise, diffusers, make_pipeline

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A pipeline in ``./sd`` and an adapter of it in ``./ours``; returns what it computes."""
    monkeypatch.chdir(tmp_path)
    pipeline = make_pipeline(tmp_path / "parts")
    pipeline.register_modules(vae=diffusers.AutoencoderKL(block_out_channels=(32,)))
    pipeline.save_pretrained("sd", safe_serialization=True)
    adapters = mmpeft.adapt(pipeline, mmpeft.LoRA(rank=2, alpha=5))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    adapters.save("ours")
    return denoise(pipeline.unet)


def test_there_and_back(expected: torch.Tensor, capsys: Capture) -> None:
    assert main(["export", "ours", "lora.safetensors", "--format", "kohya", "--base", "./sd"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ours as kohya: lora.safetensors"
    assert main(["import", "lora.safetensors", "back", "--format", "kohya", "--base", "./sd"]) == 0
    pipeline = mmpeft.load_model("./sd")
    mmpeft.load(pipeline, "back")
    torch.testing.assert_close(denoise(pipeline.unet), expected, atol=1e-5, rtol=1e-5)


def test_the_base_is_needed(expected: torch.Tensor, capsys: Capture) -> None:
    assert main(["export", "ours", "lora.safetensors", "--format", "kohya"]) == 2
    assert "base: format kohya names the parts of a model: give the model, or --base MODEL" in capsys.readouterr().err
    assert main(["export", "ours", "lora.bin", "--format", "kohya", "--base", "./sd"]) == 2
    assert "DEST 'lora.bin': must end in .safetensors" in capsys.readouterr().err
    assert not Path("lora.bin").exists()


def test_another_formats_file_is_recognised(expected: torch.Tensor, capsys: Capture) -> None:
    assert main(["export", "ours", "lora.safetensors", "--format", "kohya", "--base", "./sd"]) == 0
    assert main(["import", "lora.safetensors", "back", "--format", "ip_adapter", "--base", "./sd"]) == 2
    assert "it looks like kohya: --format kohya" in capsys.readouterr().err
