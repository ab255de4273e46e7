"""Tensors of torch's own kind, which a function of ours may compute with as it likes."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

PLAIN = (Tensor, nn.Parameter, FakeTensor)
"""A fake tensor is one without numbers: with it the memory of a step is predicted, and must take the same way."""


def is_plain(tensor: object) -> TypeGuard[Tensor]:
    """Whether a tensor is torch's own: not quantised, not sharded, no other library's."""
    return type(tensor) in PLAIN


def is_real(tensor: object) -> TypeGuard[Tensor]:
    """Whether a tensor is torch's own and has numbers."""
    return type(tensor) in (Tensor, nn.Parameter)


def computed_in(x: Tensor) -> torch.dtype:
    """Return the precision to compute in: x's own, or autocast's where that is on."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else x.dtype


def cast(x: Tensor) -> Tensor:
    """Return x in the precision to compute in; itself, without a call to be watched, where that is its own."""
    dtype = computed_in(x)
    return x if x.dtype == dtype else x.to(dtype)
