from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_models import MODELS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import mmpeft
from mmpeft.inspection.integer_tensors import WholeNumbers


@pytest.fixture
def hidden() -> Iterator[Tensor]:
    """Yield a tensor without numbers (6, 4), within the modes."""
    with FakeTensorMode(allow_non_fake_inputs=True), WholeNumbers():
        yield torch.empty(6, 4)


def test_ids_and_masks_have_numbers(hidden: Tensor) -> None:
    assert isinstance(hidden, FakeTensor)
    ids = torch.arange(6)
    mask = (ids > 2) & torch.ones(6, 6, dtype=torch.bool).tril()[5]
    assert (mask.sum() == 3).item() and not isinstance(mask, FakeTensor)
    assert torch.full((2,), 3).tolist() == [3, 3] and torch.randint(5, 6, (2,)).tolist() == [5, 5]
    assert (torch.tensor(1.5) * 2).item() == 3.0


def test_floating_point_has_none(hidden: Tensor) -> None:
    made = [torch.zeros(3), torch.full((2,), 0.5), torch.rand(2), torch.arange(0.0, 1.0, 0.5), hidden + torch.arange(4)]
    assert all(isinstance(tensor, FakeTensor) for tensor in made)


def test_a_mask_picks_as_many_rows_as_it_has(hidden: Tensor) -> None:
    mask = torch.arange(6) > 1
    assert hidden[mask].shape == (4, 4) and hidden[:, torch.arange(4) > 2].shape == (6, 1)
    hidden[mask] = 0.0
    pairs = mask[:, None] & (torch.arange(4) > 0)
    assert hidden[pairs].shape == (12,)


def test_weights_stay_aside() -> None:
    packed = torch.zeros(8, dtype=torch.uint8)
    with FakeTensorMode(allow_non_fake_inputs=True), WholeNumbers([packed]):
        assert isinstance(packed.view(2, 4).float(), FakeTensor)


@pytest.mark.parametrize("padded", [True, False])
def test_a_pass_goes_the_way_that_the_ids_tell(padded: bool) -> None:
    """Transformers drops a mask that hides nothing, and then keeps no repeated keys and values."""
    ids = torch.arange(16).view(2, 8) + 1
    mask = (ids < (14 if padded else 99)).long()
    adapters = mmpeft.adapt(MODELS["llama"](), "lora")
    plain = adapters.report({"input_ids": ids, "use_cache": False})
    masked = adapters.report({"input_ids": ids, "attention_mask": mask, "use_cache": False})
    assert plain.step.numbers is None and masked.step.numbers is None
    assert (masked.saved_bytes > plain.saved_bytes) == padded
