"""Tensors of torch's own kind, which a function of ours may compute with as it likes."""

from __future__ import annotations

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

PLAIN = (Tensor, nn.Parameter, FakeTensor)
"""A fake tensor is one without numbers: with it the memory of a step is predicted, and must take the same way."""


def is_plain(tensor: object) -> bool:
    """Whether a tensor is torch's own: not quantised, not sharded, no other library's."""
    return type(tensor) in PLAIN
