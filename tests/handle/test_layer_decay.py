"""Layer-wise learning rates, against timm's own groups of the same parameters."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import mmpeft


def test_rates_are_those_of_timm() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    theirs = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {id(parameter): group["lr_scale"] for group in theirs for parameter in group["params"]}
    expected = {name: scales[id(parameter)] for name, parameter in model.named_parameters()}
    adapters = mmpeft.adapt(model, mmpeft.FullFineTuning())
    rates = adapters.rates(layer_decay=0.5)
    assert len({*rates.values()}) > 3
    for name, rate in rates.items():
        own = name.removeprefix("main.").replace(".full_fine_tuning", "").replace("full_fine_tuning.", "")
        assert rate == pytest.approx(expected[own]), name


def test_groups_are_for_an_optimizer() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    adapters = mmpeft.adapt(model, [mmpeft.LoRA(rank=2, plus_ratio=4.0), mmpeft.LinearProbe()])
    optimizer = torch.optim.AdamW(adapters.parameter_groups(1e-3, layer_decay=0.5))
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in adapters.named_parameters()}
    assert len(rates) == len(adapters.parameters())
    blocks = len(model.blocks)
    assert found["main.blocks.0.attn.q.lora.lora_A"] == pytest.approx(1e-3 * 0.5**blocks)
    assert found["main.blocks.0.attn.q.lora.lora_B"] == pytest.approx(4e-3 * 0.5**blocks)
    assert found["main.head.linear_probe.weight"] == 1e-3
    with pytest.raises(ValueError, match="layer_decay: 2 is not above 0"):
        adapters.rates(layer_decay=2)
