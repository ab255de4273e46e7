import copy
import pickle

import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.kernels.per_weight import PerWeight


class Counted(PerWeight):
    """Counts how often its tensor is made."""

    count = 0

    def sums(self, weight: Tensor) -> Tensor:
        def make() -> Tensor:
            self.count += 1
            return weight.detach().sum(1)

        return self.of(weight, make)


def test_it_is_made_once_and_again_when_the_weight_changes() -> None:
    weight, made = nn.Parameter(torch.randn(3, 4)), Counted()
    first = made.sums(weight)
    assert made.sums(weight) is first
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(made.sums(weight), 2 * first)
    weight.data = torch.ones(3, 4)
    torch.testing.assert_close(made.sums(weight), torch.full((3,), 4.0))
    assert made.count == 3
    other = nn.Parameter(torch.zeros(3, 4))
    torch.testing.assert_close(made.sums(other), torch.zeros(3))
    assert made.count == 4


def test_of_a_tensor_that_stands_in_for_a_weight_it_is_made_each_time() -> None:
    weight, made = torch.randn(3, 4), Counted()
    made.sums(weight)
    made.sums(weight)
    assert made.count == 2


def test_of_a_quantised_weight_it_is_made_once() -> None:
    for kind in ("nf4", "int8"):
        model = nn.Sequential(nn.Linear(64, 64))
        mmpeft.quantize(model, kind, compute=torch.float32)
        made = PerWeight()
        first = made.of(model[0].weight, lambda: torch.zeros(1))
        assert made.of(model[0].weight, lambda: torch.ones(1)) is first


def test_copies_start_without() -> None:
    made = PerWeight()
    made.of(nn.Parameter(torch.ones(2, 2)), lambda: torch.ones(1))
    assert copy.deepcopy(made).made is None
    assert pickle.loads(pickle.dumps(made)).made is None
