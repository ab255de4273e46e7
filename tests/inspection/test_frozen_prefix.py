from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.inspection.frozen_prefix import FrozenPrefix
from mmpeft.inspection.frozen_prefix_search import find_prefix


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("2",)))
    return model


@pytest.fixture
def prefix(model: nn.Module) -> FrozenPrefix:
    return find_prefix(model, lambda batch: model(batch["image"]).sum(), {"image": torch.randn(3, 6)})


def test_it_says_what_it_keeps(prefix: FrozenPrefix) -> None:
    assert (prefix.place, prefix.shape, prefix.sample_bytes) == ("the input of 2", (4,), 16)
    assert prefix.later == {"2"}


def test_computing_ends_at_the_landing(model: nn.Module, prefix: FrozenPrefix) -> None:
    images, calls = torch.randn(5, 6), []
    model[2].register_forward_hook(lambda *_: calls.append(1))
    stored = prefix.compute(lambda: model(images))
    assert torch.equal(stored, model[1](model[0](images)))
    assert not calls and not stored.requires_grad


@pytest.mark.parametrize("size", [1, 7])
def test_a_pass_can_be_resumed_with_any_batch(model: nn.Module, prefix: FrozenPrefix, size: int) -> None:
    images = torch.randn(size, 6)
    stored = prefix.compute(lambda: model(images))
    expected = model(images)
    with prefix.resumed(stored):
        output: Tensor = model(torch.full_like(images, float("nan")))
    assert torch.equal(output, expected)


def test_the_model_is_itself_again_after_an_error(model: nn.Module, prefix: FrozenPrefix) -> None:
    images = torch.randn(2, 6)
    expected = model(images)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), prefix.resumed(torch.randn(2, 9)):
        model(images)
    assert torch.equal(model(images), expected)


def test_a_pass_that_never_comes_there_is_an_error(model: nn.Module, prefix: FrozenPrefix) -> None:
    with pytest.raises(ValueError, match="never came to the input of 2"):
        prefix.compute(lambda: model[0](torch.randn(2, 6)))
    with (
        pytest.raises(ValueError, match="never came to the input of 2, where it was to be resumed"),
        prefix.resumed(torch.randn(2, 4)),
    ):
        model[0](torch.randn(2, 6))
