"""What vLLM and llama.cpp load: read back by HF peft and by gguf, and compared with our own deltas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import mmpeft
from mmpeft.formats import export

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
IDS = torch.arange(10).view(2, 5)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZE)).eval()


def qwen() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **SIZE)).eval()


def saved(model: Any, methods: Any, directory: Path) -> Tensor:
    """Save a moved adapter, and return the logits with it."""
    adapters = mmpeft.adapt(model, methods)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.1)
    adapters.save(directory)
    return model(IDS).logits.detach()


LINEARS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.up", "mlp.down")
ONE = mmpeft.LoRA(rank=4, alpha=8, targets=LINEARS)
RANK_STABILIZED = mmpeft.LoRA(rank=4, alpha=8, targets=LINEARS, rank_stabilized=True)
MIXED = [
    mmpeft.LoRA(rank=2, alpha=6, targets=["attn.q", "attn.k"]),
    mmpeft.LoRA(rank=5, alpha=1, targets=["mlp.down", "attn.v"], rank_stabilized=False),
]


@pytest.mark.parametrize("methods", [ONE, RANK_STABILIZED, MIXED], ids=["one", "rank stabilized", "mixed"])
def test_vllm_has_one_rank_and_one_scale(methods: Any, tmp_path: Path) -> None:
    """vLLM multiplies every B by ``lora_alpha / r``, and knows neither rsLoRA nor patterns of alphas."""
    logits = saved(llama(), methods, tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "served", "vllm")
    config = json.loads((tmp_path / "served/adapter_config.json").read_text())
    assert not {"rank_pattern", "alpha_pattern"} & config.keys()
    assert (config["bias"], config["use_rslora"], config["use_dora"], config["modules_to_save"]) == ("none", 0, 0, None)
    tensors = load_file(tmp_path / "served/adapter_model.safetensors")
    model, scale = llama(), config["lora_alpha"] / config["r"]
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            assert path.rpartition(".")[2] in config["target_modules"]
            assert len(a) <= config["r"]
            delta = scale * tensors[name.replace("lora_A", "lora_B")] @ a
            model.get_submodule(path).weight.data += delta
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-5, atol=1e-5)


def test_peft_reads_what_vllm_does(tmp_path: Path) -> None:
    logits = saved(llama(), ONE, tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "served", "vllm")
    model = peft.PeftModel.from_pretrained(llama(), tmp_path / "served")
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-5, atol=1e-5)


def gguf_deltas(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file as llama.cpp does: each delta times alpha over its own rank."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    alpha, found = fields["adapter.lora.alpha"], {}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            b = tensors[name.removesuffix("a") + "b"]
            assert b.shape[1] == a.shape[0]
            found[name.removesuffix(".lora_a")] = alpha / b.shape[1] * b @ a
    return found, fields


@pytest.mark.parametrize("methods", [ONE, RANK_STABILIZED, MIXED], ids=["one", "rank stabilized", "mixed"])
def test_gguf_holds_the_deltas(methods: Any, tmp_path: Path) -> None:
    logits, base = saved(qwen(), methods, tmp_path / "adapter"), qwen()
    export(tmp_path / "adapter", tmp_path / "adapter.gguf", "gguf", base=base)
    deltas, fields = gguf_deltas(tmp_path / "adapter.gguf")
    wanted = {"general.architecture": "qwen2", "general.type": "adapter", "adapter.type": "lora"}
    assert {key: fields[key] for key in wanted} == wanted
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    names |= {"attn_output": "self_attn.o_proj"} | {
        f"ffn_{name}": f"mlp.{name}_proj" for name in ("up", "gate", "down")
    }
    for name, delta in deltas.items():
        *layer, own, _ = name.split(".")
        base.get_submodule(f"model.layers.{layer[1]}.{names[own]}").weight.data += delta
    torch.testing.assert_close(base(IDS).logits, logits, rtol=1e-5, atol=1e-5)


def interleaved(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate neighbouring features (2i, 2i + 1) of x (positions, heads, width), as llama.cpp does for Llama."""
    angles = positions[:, None] / 10000 ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)


def halves(x: Tensor, positions: Tensor) -> Tensor:
    """Rotate features i and i + width / 2, as transformers does."""
    angles = positions[:, None] / 10000 ** (torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def test_a_llama_s_queries_and_keys_are_ordered_for_llama_cpp_s_rotation(tmp_path: Path) -> None:
    base = llama()
    saved(llama(), ONE, tmp_path / "adapter")
    export(tmp_path / "adapter", tmp_path / "adapter.gguf", "gguf", base=base)
    deltas, _ = gguf_deltas(tmp_path / "adapter.gguf")
    peer = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    x, positions = torch.randn(6, 32), torch.arange(6)
    products = []
    attention = peer.base_model.model.model.layers[0].self_attn
    for rotate, queries, keys in (
        (halves, attention.q_proj.get_delta_weight("default"), attention.k_proj.get_delta_weight("default")),
        (interleaved, deltas["blk.0.attn_q.weight"], deltas["blk.0.attn_k.weight"]),
    ):
        q = rotate((x @ queries.T).view(6, 4, 8), positions)
        k = rotate((x @ keys.T).view(6, 2, 8), positions).repeat_interleave(2, 1)
        products.append(torch.einsum("qhd,khd->hqk", q, k))
    torch.testing.assert_close(*products, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("format", "dest"), [("vllm", "served"), ("gguf", "served.gguf")])
@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("dora", "DoRA: its magnitudes have no place"),
        ("ia3", "holds LoRA only, not IA3"),
        ("norm_tuning", "holds LoRA only, and HF peft knows none in this one"),
    ],
)
def test_what_servers_have_no_place_for(methods: str, message: str, format: str, dest: str, tmp_path: Path) -> None:
    saved(llama(), methods, tmp_path / "adapter")
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "adapter", tmp_path / dest, format, base=llama())
    assert not (tmp_path / dest).exists()


def test_a_rank_beyond_vllm_s_is_named(tmp_path: Path) -> None:
    saved(llama(), mmpeft.LoRA(rank=513, targets=["attn.q"]), tmp_path / "adapter")
    with pytest.raises(ValueError, match="rank 513: vLLM's --max-lora-rank is at most 512"):
        export(tmp_path / "adapter", tmp_path / "served", "vllm")


def test_a_family_that_gguf_is_not_written_for_is_named(tmp_path: Path) -> None:
    saved(llama(), ONE, tmp_path / "adapter")
    other = llama()
    other.config.model_type = "falcon"
    with pytest.raises(ValueError, match=r"format gguf knows no 'falcon'"):
        export(tmp_path / "adapter", tmp_path / "served.gguf", "gguf", base=other)
