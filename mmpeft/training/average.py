"""Averages of the adapter over its training, which are evaluated and saved in its place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mmpeft.training.config import EpochAverage, TrainConfig


class Average:
    """A running mean of the weights, in fp32: ``a <- a + s (w - a)``; a subclass says when, and with which share s."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.values = {name: weight.detach().float().clone() for name, weight in weights.items()}

    def after_step(self, step: int) -> None:
        """Take in the weights after ``step`` optimizer steps, if this average wants them."""

    def after_epoch(self, epoch: int) -> None:
        """Take in the weights after ``epoch`` epochs, if this average wants them."""

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
    def _take_in(self, share: float) -> None:
        for name, weight in self.weights.items():
            self.values[name].lerp_(weight.detach().float(), share)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])


class MovingAverage(Average):
    """``a <- d a + (1 - d) w`` after each step, with ``d = min(decay, (1 + step) / (10 + step))``.

    The smaller decay of the first steps lets short runs leave their initialisation (as in TensorFlow's
    ``ExponentialMovingAverage``).
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        super().__init__(weights)
        self.decay = decay

    def after_step(self, step: int) -> None:
        """Take in the weights after ``step`` optimizer steps."""
        self._take_in(1 - min(self.decay, (1 + step) / (10 + step)))


class GaussianAverage(Average):
    """``sum_e g_e w_e / sum_e g_e`` over the epochs e so far, with ``g_e = exp(-(e - mean)^2 / (2 std^2))``.

    The weighting of PromptSRC (Khattak et al. 2023, arXiv:2307.06948), which is its result after the last epoch.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: EpochAverage) -> None:
        super().__init__(weights)
        self.config = config

    def after_epoch(self, epoch: int) -> None:
        """Take in the weights after ``epoch`` epochs."""
        logs = [-(((e - self.config.mean) / self.config.std) ** 2) / 2 for e in range(1, epoch + 1)]
        top = max(logs)
        self._take_in(math.exp(logs[-1] - top) / sum(math.exp(log - top) for log in logs))


def make_average(weights: Mapping[str, Tensor], config: TrainConfig) -> Average | None:
    """Return the average that a configuration asks for."""
    if config.average is not None:
        return GaussianAverage(weights, config.average)
    return MovingAverage(weights, config.ema) if config.ema is not None else None
