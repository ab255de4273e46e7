from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.inspection.trace import inner_forward, inner_forwards, overridden, trace


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(input=x)


def test_calls_in_their_order_and_nesting() -> None:
    model = Named()
    mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets="all"))
    x = torch.randn(3, 2)
    calls, output = trace(model, lambda: model(x))
    assert [call.path for call in calls] == ["", "inner", "inner.0", "inner.1"]
    assert [call.parent and call.parent.path for call in calls] == [None, "", "inner", "inner"]
    assert [call.random for call in calls] == [True, True, False, True]
    assert all(call.start < call.end for call in calls) and calls[2].end < calls[3].start
    assert calls[1].entered is x and calls[0].left is output and calls[3].entered is calls[2].left


def test_forwards_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, own = nn.Identity(), nn.Identity()

    def hooked(x: Any) -> Any:
        return -x

    monkeypatch.setitem(own.__dict__, "forward", hooked)
    with pytest.raises(ZeroDivisionError), overridden({plain: lambda x: x + 1, own: lambda x: x + 2}):
        assert (plain(1), own(1)) == (2, 3)
        raise ZeroDivisionError
    assert (plain(1), own(1)) == (1, -1)
    assert "forward" not in plain.__dict__


def test_the_inner_call_of_an_edited_module() -> None:
    norm, x = nn.Sequential(nn.LayerNorm(2)), torch.randn(3, 2)
    adapters = mmpeft.adapt(norm, mmpeft.SSF())
    for parameter in adapters.parameters():
        parameter.data += 1
    calls, _ = trace(norm, lambda: norm(x))
    outer, inner = calls[1:]
    assert (inner.path, inner.inner, inner.parent) == ("0", True, outer)
    assert torch.equal(inner.left, nn.LayerNorm(2)(x)) and inner.entered is x
    assert not torch.equal(outer.left, inner.left)
    expected = norm(x)
    with inner_forwards({norm[0]: lambda host, x: inner.left}):
        assert torch.equal(norm(torch.zeros_like(x)), expected)
    with adapters.off():
        assert inner_forward(norm[0]) is None
