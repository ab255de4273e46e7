from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmpeft.data.tensor_store import TensorStore, content_key, weights_key


@pytest.mark.parametrize("disk", [False, True])
def test_tensors_are_made_once_and_found_by_key(tmp_path: Path, disk: bool) -> None:
    made = []

    def make(value: float) -> dict[str, torch.Tensor]:
        made.append(value)
        return {"x": torch.full((2, 2), value).T, "y": torch.tensor([value], dtype=torch.float64)}

    store = TensorStore(tmp_path / "store" if disk else None)
    for _ in range(2):
        assert store.get("a/1", lambda: make(1.0))["x"].tolist() == [[1, 1], [1, 1]]
        assert store.get("b", lambda: make(2.0))["y"].dtype == torch.float64
    assert made == [1.0, 2.0]
    if disk:
        assert TensorStore(tmp_path / "store").get("b", dict)["y"].item() == 2


def test_other_contents_have_other_keys() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    assert weights_key(first) != weights_key(second)
    second.load_state_dict(first.state_dict())
    assert weights_key(first) == weights_key(second)
    assert weights_key(first) != weights_key(first.double())
    assert content_key(torch.zeros(2)) != content_key(torch.zeros(3))
