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
from mmpeft.training.failures import NonFiniteLossError
from mmpeft.training.loading import Loaded
from mmpeft.training.optimizer import set_lr
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

    def _train_step(self, window: list[Loaded]) -> None:
        done, lr = self.progress, self.schedule(self.progress.step)
        self._agree_on_weight([])
        set_lr(self.optimizer, lr)
        try:
            values = self._learn(self._written(window))
        except NonFiniteLossError as error:
            self._stop_before(error)
        done.step, done.batch = done.step + 1, done.batch + len(window)
        if self.average:
            self.average.after_step(done.step)
        self._record("train", {**values, "lr": lr})
        self._display.step(done.step, done.epoch, values["loss"], lr)

    def try_step(self) -> dict[str, float]:
        """Make the steps of one batch of prompts and return their numbers; nothing is written to disk."""
        return self._learn(self._written([next(iter(self.batches))]))

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
