"""An adapter's weight may differ from place to place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mmpeft
from mmpeft.anatomies.sites import Site
from mmpeft.edits.weights import weight_at


def place(path: str, name: str = "attn.q", tower: str = "vision") -> Site:
    return Site(name=name, path=path, host=nn.Identity(), host_path=path, tower=tower)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.7, 0.7),
        ({"blocks.1.*": 0.5}, 0.5),
        ({"blocks.2.*": 0.5}, 0.0),
        ({"*": 1.0, "blocks.1.*": 0.5}, 0.5),
        ({"blocks.1.*": 0.5, "*": 1.0}, 1.0),
        ({"attn.*": 0.3}, 0.3),
        ({"vision.*": 0.2}, 0.2),
        ({"text.*": 0.2}, 0.0),
    ],
)
def test_the_last_pattern_that_matches_counts(weight: Any, expected: float) -> None:
    assert weight_at(weight, place("blocks.1.attn.q")) == expected


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


def deltas(model: Any) -> Any:
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, alpha=2, targets="all"))
    for parameter in adapters.parameters():
        nn.init.normal_(parameter)
    return adapters


@torch.no_grad()
def test_places_of_a_lora_count_as_said_and_merge_so(model: Any) -> None:
    x, first, last = torch.randn(3, 4), model[0].weight.clone(), model[2].weight.clone()
    adapters = deltas(model)
    state = adapters.state_dict()
    delta = {at: state[f"{at}.lora.lora_B"] @ state[f"{at}.lora.lora_A"] for at in "02"}
    weight = {"*": 0.5, "2": 2.0}
    adapters.activate("main", weights=[weight])
    assert adapters.active == {"main": weight}
    hidden = torch.tanh(x @ (first + 0.5 * delta["0"]).T + model[0].bias)
    expected = hidden @ (last + 2.0 * delta["2"]).T + model[2].bias
    torch.testing.assert_close(model(x), expected)
    adapters.merge()
    torch.testing.assert_close(model(x), expected)
    adapters.unmerge()
    with adapters.off():
        assert torch.equal(model[0].weight, first)
    assert adapters.active == {"main": weight}


def test_a_pattern_that_matches_nothing_is_named(model: Any) -> None:
    adapters = deltas(model)
    with pytest.raises(ValueError, match=r"weights: '3' matches no place of this adapter \(one of: .*2"):
        adapters.activate("main", weights=[{"3": 1.0}])
    assert adapters.active == {"main": 1.0}


def test_tokens_have_no_weight_but_one() -> None:
    model = mmpeft.load_model("tiny/vit", num_classes=2)
    adapters = mmpeft.adapt(model, mmpeft.VPT(tokens=2))
    with pytest.raises(ValueError, match="inserted tokens can't be mixed by weight"):
        adapters.activate("main", weights=[{"vision.*": 0.5}])
    adapters.activate("main", weights=[{"*": 1.0}])
