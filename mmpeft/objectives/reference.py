"""The policy before training: the same model with its adapters off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mmpeft.handle.adapters import Adapters


@contextmanager
def as_reference(model: nn.Module, adapters: Adapters) -> Iterator[None]:
    """Within this context the model is the frozen one, without dropout and without a graph."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), adapters.off():
            yield
    finally:
        for module, training in modes:
            module.training = training
