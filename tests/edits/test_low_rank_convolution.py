"""LoRA and DoRA of convolutions against their formulas, with every option of a convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmpeft
from mmpeft.anatomies import ConvSite

HOSTS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "point": {"kernel_size": 1},
    "dilated": {"kernel_size": (3, 2), "dilation": (2, 1), "padding": "same"},
    "reflected": {"kernel_size": 5, "padding": 2, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_it_is_a_delta_of_the_weight(method: str, host: str) -> None:
    """``W[o, i, k, l] + s sum_r B[o, r] A[r, i, k, l]``, for DoRA times m over the norm of each output channel."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, **HOSTS[host])).double()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    frozen = model(x)
    adapters = mmpeft.adapt(model, {"method": method, "rank": 2, "alpha": 3, "targets": "0"})
    assert torch.allclose(model(x), frozen, atol=1e-12)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter))
    own = {key.rpartition(".")[2]: parameter for key, parameter in adapters.named_parameters()}
    loss = (model(x) ** 2).sum()
    found = torch.autograd.grad(loss, list(own.values()))

    conv: Any = model[0]
    weight = conv.weight + 1.5 * torch.einsum("or,rikl->oikl", own["lora_B"][:, :, 0, 0], own["lora_A"])
    if method == "dora":
        norms = weight.detach().flatten(1).norm(dim=1)
        weight = weight * (own["magnitude"] / norms)[:, None, None, None]
    expected = conv._conv_forward(x, weight, conv.bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    for own_grad, grad in zip(found, torch.autograd.grad((expected**2).sum(), list(own.values())), strict=True):
        torch.testing.assert_close(own_grad, grad, rtol=1e-9, atol=1e-9)
    adapters.merge()
    torch.testing.assert_close(conv.weight, weight, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)


def test_dropout_is_on_the_input_of_a() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False)).train(), torch.ones(1, 3, 50, 50)
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=1, dropout=0.5, targets="0"))
    own = dict(adapters.named_parameters())
    with torch.no_grad():
        own["main.0.lora.lora_A"].fill_(1)
        own["main.0.lora.lora_B"].fill_(1)
        delta = model(x) - F.conv2d(x, model[0].weight)
    assert {round(float(value)) for value in delta.unique()} == {0, 2, 4, 6}


def test_convolutions_with_groups_are_no_sites() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3))
    assert [site.path for site in mmpeft.anatomy(model).sites(ConvSite)] == ["1"]
    with pytest.raises(ValueError, match=r"has no linear site or convolution '0': this Conv2d has 4 groups"):
        mmpeft.adapt(model, mmpeft.LoRA(targets="0"))


def test_all_means_linear_layers_and_a_pattern_means_convolutions_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(36, 2))
    placed = {}
    for name, targets in {"all": "all", "pattern": "*"}.items():
        adapters = mmpeft.adapt(model, mmpeft.LoRA(targets=targets), name=name)
        placed[name] = [site.path for part in adapters.parts(name).values() for site, _, _ in part.places]
    assert placed == {"all": ["2"], "pattern": ["0", "2"]}
