import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mmpeft.inspection.live_bytes import LiveBytes


def test_each_storage_counts_once_and_until_it_is_gone() -> None:
    x = torch.ones(10)
    with LiveBytes([x]) as live:
        assert live.bytes == 0 and x.view(2, 5).T.is_contiguous() is False
        a = x + 1
        b = a[:5]
        assert live.bytes == 40
        del a
        assert live.bytes == 40
        del b
        assert live.bytes == 0 and live.most == 40


def test_what_the_graph_keeps_is_alive() -> None:
    x = torch.ones(10, requires_grad=True)
    with LiveBytes([x]) as live:
        y = x.exp().sum()
        assert live.bytes == 40 + 4
        y.backward()
        del y
        assert live.bytes == 40
        x.grad = None
        assert live.bytes == 0


def test_the_most_has_operands_and_result() -> None:
    x = torch.ones(100)
    with LiveBytes([x]) as live:
        ((x + 1) * 2).sum()
    assert live.most == 800


def test_fake_tensors_count_as_real_ones_would() -> None:
    with FakeTensorMode(), LiveBytes() as live:
        x = torch.empty(1 << 40)
        assert live.bytes == 4 << 40
        del x
    assert live.bytes == 0
