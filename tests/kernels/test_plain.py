import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmpeft.kernels.plain import is_plain


class Wrapped(torch.Tensor):
    """Stands for another library's tensor."""


def test_plain_are_torchs_own_with_numbers_and_without() -> None:
    x = torch.zeros(2)
    assert is_plain(x) and is_plain(nn.Parameter(x)) and is_plain(FakeTensorMode().from_tensor(x))
    assert not is_plain(x.as_subclass(Wrapped)) and not is_plain(None)
