"""The learning rate as a function of the step, so that nothing about it needs saving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A warm-up of ``warmup`` units, then a decay from ``lr`` to ``min_lr``; a unit is ``stride`` optimizer steps.

    At unit t of the warm-up: ``warmup_lr + (lr - warmup_lr) t / warmup``, or ``lr (t + 1) / warmup`` where
    ``warmup_lr`` is None, or ``warmup_lr`` if it is ``flat``. After it, with d the share of the decay that is done:
    ``min_lr + (lr - min_lr) f(d)``, f being ``(1 + cos(pi d)) / 2`` (Loshchilov & Hutter 2017, arXiv:1608.03983),
    ``1 - d`` or 1. The decay begins at unit ``begin`` and is ``length`` units long; ``total`` counts optimizer steps.
    """

    lr: float
    kind: Literal["cosine", "linear", "constant"]
    total: int
    begin: int
    length: int
    stride: int = 1
    warmup: int = 0
    warmup_lr: float | None = None
    flat: bool = False
    min_lr: float = 0.0

    def __call__(self, step: int) -> float:
        """Return the learning rate of the optimizer step after ``step`` steps."""
        unit = step // self.stride
        if unit < self.warmup:
            return self._warming(unit)
        done = (unit - self.begin) / self.length
        factors = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
        return self.min_lr + (self.lr - self.min_lr) * factors[self.kind]

    def _warming(self, unit: int) -> float:
        if self.warmup_lr is None:
            return self.lr * (unit + 1) / self.warmup
        return self.warmup_lr + (0.0 if self.flat else (self.lr - self.warmup_lr) * unit / self.warmup)


def make_schedule(config: TrainConfig, batches: int, processes: int = 1) -> Schedule:
    """Return the schedule of ``config`` for epochs of so many batches."""
    per_epoch = -(-batches // config.accumulate)
    total = config.max_steps or per_epoch * (config.epochs or 0)
    stride = per_epoch if config.step_by == "epoch" else 1
    warmup = config.warmup_steps or round(config.warmup_epochs * per_epoch / stride)
    units = total // stride
    begin = 0 if config.decay_span == "from_start" else warmup
    return Schedule(
        lr=peak(config, processes),
        kind=config.schedule,
        total=total,
        begin=begin,
        length=units - warmup if config.decay_span == "after_warmup" else units,
        stride=stride,
        warmup=warmup,
        warmup_lr=config.warmup_lr,
        flat=config.warmup == "constant",
        min_lr=config.min_lr,
    )


def peak(config: TrainConfig, processes: int) -> float:
    """Return the peak learning rate: ``lr``, scaled linearly where it is meant for a batch of ``lr_per`` samples."""
    if config.lr_per is None:
        return config.lr
    return config.lr * config.batch_size * config.accumulate * processes / config.lr_per
