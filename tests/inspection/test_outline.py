from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mmpeft.inspection.outline import Outline, TensorOutline

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("big", "small", "sizes", "sample"),
    [
        ((3, 4), (2, 4), (6, 4), (4,)),
        ((12, 5), (8, 5), (24, 5), None),
        ((7, 3, 2), (7, 2, 2), (7, 6, 2), None),
        ((3, 3), (2, 2), (6, 6), None),
        ((4,), (4,), (4,), None),
    ],
)
def test_dimensions_that_grow_with_the_batch(big: Any, small: Any, sizes: Any, sample: Any) -> None:
    outline = TensorOutline.of(torch.zeros(big), torch.zeros(small), (3, 2))
    assert outline is not None
    made = outline.stand_in(6, CPU)
    assert made.shape == sizes and made.isnan().all() and made.untyped_storage().nbytes() == 4
    assert outline.sample == sample


@pytest.mark.parametrize(
    ("big", "small"),
    [
        (torch.zeros(3), torch.zeros(2, 1)),
        (torch.zeros(5), torch.zeros(2)),
        (torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long)),
        (torch.zeros(3), torch.zeros(2, dtype=torch.float64)),
    ],
)
def test_what_has_no_outline(big: Tensor, small: Tensor) -> None:
    assert TensorOutline.of(big, small, (3, 2)) is None
    assert Outline.of((big, None), (small, None), (3, 2)) is None


def test_structures_are_kept() -> None:
    from transformers.modeling_outputs import BaseModelOutputWithPooling as Output

    def output(batch: int) -> Any:
        return Output(last_hidden_state=torch.zeros(batch, 2), hidden_states=(torch.ones(batch),))

    outline = Outline.of(output(3), output(2), (3, 2))
    assert outline is not None
    made = outline.stand_in(4, CPU)
    assert isinstance(made, Output) and made.pooler_output is None
    assert made.last_hidden_state.shape == (4, 2) and made.hidden_states[0].shape == (4,)
    assert Outline.of((torch.zeros(3),), torch.zeros(2), (3, 2)) is None
