"""Training on what the model writes itself: for each batch of prompts answers, and several steps on them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor

from mmpeft.objectives.base import Batch
from mmpeft.objectives.ppo import PPO
from mmpeft.training.evaluation import set_training_mode
from mmpeft.training.loader import Loaded
from mmpeft.training.trainer import Trainer


class PolicyTrainer(Trainer):
    """A trainer whose step is one batch of prompts: it lets the policy answer, then makes the optimizer's steps."""

    objective: PPO

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        if self.accelerator.num_processes > 1:
            raise ValueError(f"{self.accelerator.num_processes} processes: PPO runs in one so far")
        if self.config.accumulate > 1:
            raise ValueError(f"train.accumulate: {self.config.accumulate}: ppo.minibatch splits the answers: 1")

    def _make_steps(self, window: list[Loaded]) -> dict[str, float]:
        self._agree_on_weight([])
        return self._learn(self._written(window))

    def _learned_from(self, window: list[Loaded]) -> list[Batch]:
        return [next(self._parts(self._written(window)))]

    def _written(self, window: list[Loaded]) -> Batch:
        (prompts, _), = window  # fmt: skip
        with self.accelerator.autocast():
            return self.objective.written(self.model, send_to_device(prompts, self.accelerator.device))

    def _learn(self, written: Batch) -> dict[str, float]:
        """Make the optimizer's steps, and return the means of their numbers, and of reward and kl of the answers."""
        set_training_mode(self.model)
        steps = [self.stepper.step([(part, True)], self.objective.weight(part)) for part in self._parts(written)]
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        return {**means, **{name: written[name].mean().item() for name in ("reward", "kl")}}

    def _parts(self, written: Batch) -> Iterator[Batch]:
        count = len(written["mask"])
        size = self.objective.settings.minibatch or count
        for _ in range(self.objective.settings.epochs):
            for rows in torch.randperm(count).split(size):
                yield {name: _picked(value, rows) for name, value in written.items()} | {"counted": True}


def _picked(value: Any, rows: Tensor) -> Any:
    return value[rows.to(value.device)] if isinstance(value, Tensor) else [value[row] for row in rows.tolist()]
