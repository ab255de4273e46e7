"""The learning rate as a function of the step, so that nothing about it needs saving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig


@dataclass(frozen=True)
class Schedule:
    """``lr * factor(step)``: a linear warm-up to 1 in ``warmup`` steps, then cosine or linear to 0 at ``total``.

    Cosine: ``(1 + cos(pi t)) / 2`` (Loshchilov & Hutter 2017, arXiv:1608.03983), t going from 0 to 1 after warm-up.
    """

    lr: float
    kind: Literal["cosine", "linear", "constant"]
    warmup: int
    total: int

    def __call__(self, step: int) -> float:
        """Return the learning rate of the optimizer step after ``step`` steps."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / (self.total - self.warmup)
        factors = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
        return self.lr * factors[self.kind]


def make_schedule(config: TrainConfig, batches: int) -> Schedule:
    """Return the schedule of ``config`` for epochs of so many batches."""
    per_epoch = -(-batches // config.accumulate)
    total = config.max_steps or per_epoch * (config.epochs or 0)
    return Schedule(config.lr, config.schedule, config.warmup_steps or round(config.warmup_epochs * per_epoch), total)
