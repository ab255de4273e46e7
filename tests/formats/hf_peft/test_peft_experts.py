"""Mixtures of experts: what peft would load into other layers than ours is saved natively, the rest as it reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import mmpeft
from mmpeft.formats import export

SIZE: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT: dict[str, Any] = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v3": (
        "DeepseekV3",
        {**LATENT, "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
         "first_k_dense_replace": 1},
    ),
    "glm4_moe": (
        "Glm4Moe",
        {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 4, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 1}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 4, "head_dim": 8}),
}  # fmt: skip
IDS = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(1))


def make(model: str) -> Any:
    name, options = MODELS[model]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZE | options)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("targets", ["*_proj", "*self_attn*", "*shared_expert*"])
def test_what_is_saved_for_peft_computes_the_same_there(model: str, targets: str, shaken: Any, tmp_path: Path) -> None:
    if targets == "*shared_expert*" and model == "qwen3_moe":
        targets = "*o_proj"  # it has none
    own = make(model)
    adapters = mmpeft.adapt(own, mmpeft.LoRA(rank=4, targets=(targets,)))
    shaken(adapters.parameters())
    adapters.save(tmp_path / "a")
    expected = own(IDS).logits
    again = make(model)
    mmpeft.load(again, tmp_path / "a")
    assert torch.equal(again(IDS).logits, expected)
    assert (expected - make(model)(IDS).logits).abs().max() > 1e-3
    if (tmp_path / "a/adapter_config.json").exists():
        peer = peft.PeftModel.from_pretrained(make(model), tmp_path / "a").eval()
        torch.testing.assert_close(peer(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    else:
        assert targets in ("*_proj", "*shared_expert*")
        with pytest.raises(ValueError, match="peft takes an adapter of this name for one of the fused experts"):
            export(tmp_path / "a", tmp_path / "b", "peft", base=own)
