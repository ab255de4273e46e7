"""LoRA, DoRA and IA3 both ways between mmpeft and the installed HF peft, on tiny language models of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import mmpeft
from mmpeft.handle.loading import load_peft

TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
    "mixtral": ["q_proj", "o_proj"],
    "bert": ["query", "intermediate.dense"],
    "t5": ["q", "wo"],
}
OURS = {"lora": mmpeft.LoRA(alpha=12), "dora": mmpeft.DoRA(), "ia3": mmpeft.IA3()}
models = pytest.mark.parametrize("model", TARGETS)
kinds = pytest.mark.parametrize("kind", OURS)


def theirs(kind: str, model: str) -> Any:
    transposed = {"fan_in_fan_out": model == "gpt2"}
    if kind == "ia3":
        feedforward = [name for name in TARGETS[model] if name in ("down_proj", "dense_4h_to_h", "wo")]
        return peft.IA3Config(target_modules=TARGETS[model], feedforward_modules=feedforward, **transposed)
    return peft.LoraConfig(target_modules=TARGETS[model], lora_alpha=12, use_dora=kind == "dora", **transposed)


@torch.no_grad()
@pytest.mark.filterwarnings("error::UserWarning:peft")
@models
@kinds
def test_peft_loads_what_we_save(make_case: Any, shaken: Any, tmp_path: Path, kind: str, model: str) -> None:
    case = make_case(kind, model)
    own = case.build()
    adapters = mmpeft.adapt(own, OURS[kind])
    shaken(adapters.parameters())
    adapters.save(tmp_path / "a")
    expected = case.run(own)
    assert (expected - case.run(case.build())).abs().max() > 1e-4
    peer = peft.PeftModel.from_pretrained(case.build(), tmp_path / "a").eval()
    torch.testing.assert_close(case.run(peer.base_model.model), expected, rtol=1e-5, atol=1e-5)
    again = case.build()
    mmpeft.load(again, tmp_path / "a")
    assert torch.equal(case.run(again), expected)


@torch.no_grad()
@models
@kinds
def test_we_load_what_peft_saves(make_case: Any, shaken: Any, tmp_path: Path, kind: str, model: str) -> None:
    case = make_case(kind, model)
    peer = peft.get_peft_model(case.build(), theirs(kind, model)).eval()
    shaken([parameter for parameter in peer.parameters() if parameter.requires_grad])
    peer.save_pretrained(tmp_path / "a")
    own = case.build()
    load_peft(own, tmp_path / "a")
    torch.testing.assert_close(case.run(own), case.run(peer.base_model.model), rtol=1e-5, atol=1e-5)
