from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import MODELS

import mmpeft
from mmpeft.inspection.unfused_attention import AttentionCalls

Q = torch.randn(2, 2, 5, 8)
LONG = torch.randn(2, 2, 7, 8)
KINDS: list[tuple[dict[str, Any], str]] = [
    ({"dropout_p": 0.1}, "dropout 0.1"),
    ({"attn_mask": torch.zeros(5, 5).requires_grad_()}, "a mask that wants a gradient"),
    ({"dropout_p": 0.1, "attn_mask": torch.ones(5, 5, dtype=torch.bool)}, "a mask, dropout 0.1"),
    ({"key": LONG, "value": LONG, "dropout_p": 0.2}, "dropout 0.2, 7 keys for 5 queries"),
]


@pytest.mark.parametrize(("how", "said"), KINDS)
def test_what_no_kernel_of_a_cpu_takes_is_said(how: dict[str, Any], said: str) -> None:
    with AttentionCalls() as calls:
        F.scaled_dot_product_attention(Q, Q, Q)
        for _ in range(2):
            F.scaled_dot_product_attention(**{"query": Q, "key": Q, "value": Q, **how})
    (line,) = calls.lines
    assert line.startswith(f"attention: 2 of 3 calls ({said}; heads of 8, float32) run by plain products")


def test_masks_and_extra_keys_do_not_force_a_slow_path() -> None:
    with AttentionCalls() as calls:
        F.scaled_dot_product_attention(Q, Q, Q, attn_mask=torch.ones(5, 5, dtype=torch.bool))
        F.scaled_dot_product_attention(Q, LONG, LONG, attn_mask=torch.zeros(5, 7))
        F.scaled_dot_product_attention(Q, Q, Q, is_causal=True)
    assert calls.calls == 3 and calls.lines == []


@pytest.mark.parametrize("method", ["prefix_tuning", "lora"])
@pytest.mark.parametrize("name", ["vit", "llama", "bert"])
def test_prefixes_and_padding_run_fused(name: str, method: str) -> None:
    ids = torch.arange(16).view(2, 8) + 1
    words = {"input_ids": ids, "attention_mask": (ids < 14).long()}
    adapters = mmpeft.adapt(MODELS[name](), method)
    assert adapters.report(torch.ones(2, 3, 32, 32) if name == "vit" else words).step.notes == ()


def test_the_report_names_the_slow_calls() -> None:
    model = MODELS["vit"]()
    for block in model.blocks:
        block.attn.attn_drop.p = 0.1
    adapters = mmpeft.adapt(model, "lora")
    report = adapters.report(torch.ones(2, 3, 32, 32))
    assert "attention: 3 of 3 calls (dropout 0.1, gradients; heads of 16, float32)" in str(report)


def test_the_report_says_where_a_memory_level_has_no_effect() -> None:
    model = MODELS["llama"]()
    adapters = mmpeft.adapt(model, "lora")
    mmpeft.use_memory(model, "lean")
    batch = {"input_ids": torch.ones(2, 8, dtype=torch.long)}
    assert adapters.report(batch).step.notes == ()
    model.gradient_checkpointing_enable()
    assert "memory: standard where gradient checkpointing computes the whole block again" in str(adapters.report(batch))
