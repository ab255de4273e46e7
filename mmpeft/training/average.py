"""The exponential moving average of the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """``a <- d a + (1 - d) w`` after each step, with ``d = min(decay, (1 + step) / (10 + step))``, kept in fp32.

    The smaller decay of the first steps lets short runs leave their initialisation (as in TensorFlow's
    ``ExponentialMovingAverage``).
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights, self.decay = weights, decay
        self.values = {name: weight.detach().float().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` optimizer steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, weight in self.weights.items():
            self.values[name].lerp_(weight.detach().float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model compute with the average inside the block; afterwards its weights are what they were."""
        before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._write(self.values)
        try:
            yield
        finally:
            self._write(before)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
