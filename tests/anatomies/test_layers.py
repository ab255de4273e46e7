"""Which layers are places for edits of their weight: told by what they compute, not by what they are called."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

import mmpeft
from mmpeft.anatomies.layers import is_convolution, is_linear, unfit


class Router(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).softmax(-1)


class Renamed(nn.Linear):
    """A subclass that computes what its parent does."""


class PaddedConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))


class StandardisedConv(nn.Conv2d):
    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


LINEAR = {
    "linear": (lambda: nn.Linear(4, 4), True),
    "subclass": (lambda: Renamed(4, 4), True),
    "router": (lambda: Router(4, 4), False),
    "spectral": (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), False),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), False),
    "bilinear": (lambda: nn.Bilinear(4, 4, 4), False),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_layer_is_told_by_its_forward(name: str) -> None:
    make, linear = LINEAR[name]
    assert is_linear(make()) == linear


def test_a_convolution_is_told_by_its_forward_and_by_how_it_convolves() -> None:
    assert is_convolution(nn.Conv2d(3, 4, 3))
    for other in (PaddedConv(3, 4, 3), StandardisedConv(3, 4, 3), nn.Conv2d(4, 4, 3, groups=2), nn.Conv3d(3, 4, 3)):
        assert not is_convolution(other)
        assert unfit(other)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", [weight_norm, parametrizations.weight_norm])
def test_a_weight_that_is_made_at_each_call_is_refused_with_the_reason(change: object) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    change(model[1])
    with pytest.raises(ValueError, match=r"no linear site '1': the weight of this \w*Linear is made of others"):
        mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("1",)))
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets="all"))
    assert [site.path for part in adapters.parts().values() for site, _, _ in part.places] == ["0"]


def test_a_router_is_refused_by_name_and_pattern() -> None:
    model = nn.ModuleDict({"router": Router(4, 4), "out": nn.Linear(4, 4)})
    for target in ("router", "*rout*"):
        with pytest.raises(ValueError, match="Router computes something else than W x"):
            mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=(target,)))


def test_a_convolution_that_pads_by_itself_is_refused() -> None:
    model = nn.Sequential(PaddedConv(3, 4, 3))
    with pytest.raises(ValueError, match="PaddedConv computes something else than a plain convolution"):
        mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("0",)))
