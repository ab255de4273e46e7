"""HF peft's directories for the parts of a diffusion pipeline, in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_diffusion import denoise, encode, make_text_encoder, make_unet

import mmpeft

peft = pytest.importorskip("peft")
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 3, "alpha": 5, "targets": ["attn.q", "attn.out"]},
    "slices": {"method": "lora", "rank": 2, "alpha": 3, "targets": ["mlp.up", "attn.v"]},
    "dora": {"method": "dora", "rank": 2, "alpha": 3, "targets": ["attn.q", "mlp.up"]},
    "ia3": {"method": "ia3"},
}
PARTS: dict[str, tuple[Any, Any]] = {"unet": (make_unet, denoise), "text_encoder": (make_text_encoder, encode)}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_our_directory(tmp_path: Path, shaken: Any, method: str, part: str) -> None:
    make, run = PARTS[part]
    model = make()
    adapters = mmpeft.adapt(model, METHODS[method])
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path / "ours").base_model.model
    torch.testing.assert_close(run(theirs), run(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("dora", [False, True])
def test_we_load_a_directory_of_peft(tmp_path: Path, shaken: Any, part: str, dora: bool) -> None:
    make, run = PARTS[part]
    targets = ["to_q", "to_v", "ff.net.0.proj"] if part == "unet" else ["q_proj", "fc1"]
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=targets, use_dora=dora)
    theirs = peft.get_peft_model(make(), config)
    shaken([p for name, p in theirs.named_parameters() if "lora_" in name])
    theirs.eval().save_pretrained(tmp_path / "theirs")
    model = make()
    mmpeft.load(model, tmp_path / "theirs")
    torch.testing.assert_close(run(model), run(theirs.base_model.model), atol=1e-5, rtol=1e-5)
