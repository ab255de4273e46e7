"""LLM-Adapters' placements against their formulas in double precision, on Llama and on GPT-2's fused weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmpeft


def prepared(method: Any) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10)).double()
    adapters = mmpeft.adapt(model, method)
    for parameter in adapters.parameters():
        parameter.data.add_(torch.randn_like(parameter))
    down, up = adapters.parameters()
    return model, torch.randn(4, 3, 6, dtype=torch.float64), down, up


def test_beside_a_layer() -> None:
    model, x, down, up = prepared(mmpeft.LLMAdapterParallel(bottleneck=3, scale=0.5, targets="all"))
    expected = F.linear(x, model[0].weight, model[0].bias) + 0.5 * torch.tanh(x @ down.T) @ up.T
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_in_front_of_a_layer() -> None:
    model, x, down, up = prepared(mmpeft.LLMAdapterSeries(bottleneck=3, scale=0.5, targets="all"))
    expected = F.linear(x + 0.5 * torch.tanh(x @ down.T) @ up.T, model[0].weight, model[0].bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_behind_the_layer_that_ends_a_sublayer(make_case: Any) -> None:
    model = make_case("lora", "llama").build().double()
    adapters = mmpeft.adapt(model, mmpeft.LLMAdapterSeries(bottleneck=3, layers="first:1", init="normal"))
    down, up = adapters.parameters()
    seen: list[tuple[Tensor, Tensor]] = []
    last = model.model.layers[0].mlp.down_proj
    last.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    model(torch.arange(6)[None])
    x, y = seen[0]
    o = F.linear(x, last.weight)
    torch.testing.assert_close(y, o + torch.tanh(o @ down.T) @ up.T, rtol=1e-10, atol=1e-10)


def test_no_adapter_in_front_of_a_part_of_a_layer(make_case: Any) -> None:
    model = make_case("lora", "gpt2").build()
    with pytest.raises(ValueError, match=r"attn.q: its input is that of transformer.h.0.attn.c_attn as a whole"):
        mmpeft.adapt(model, mmpeft.LLMAdapterSeries(bottleneck=3, targets="attn.q"))
