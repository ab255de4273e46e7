"""One optimizer step: forward and backward over a window of batches, exact for any split of it, and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from mmpeft.handle.adapters import Adapters
from mmpeft.objectives.base import Objective
from mmpeft.training.failures import NonFiniteLossError
from mmpeft.training.loader import Loaded
from mmpeft.training.parallel import whole, without_gradient_exchange


@dataclass
class Stepper:
    """Makes optimizer steps of ``sum of losses / sum of weights`` over all batches, passes and processes."""

    model: nn.Module
    adapters: Adapters
    objective: Objective
    optimizer: Optimizer
    accelerator: Accelerator
    clip: float | None
    _checked: bool = field(default=False, init=False)
    _trained: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self._trained = self.adapters.parameters()

    def step(self, window: Sequence[Loaded], weight: float) -> dict[str, float]:
        """Make one step with gradients divided by ``weight``; return the mean loss and logs, and the gradient norm."""
        self.optimizer.zero_grad(set_to_none=True)
        sums = self._backward(window, weight)
        if not self._checked:
            self.adapters.check_gradients()
            self._checked = True
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer)
        norm = whole(nn.utils.clip_grad_norm_(self._trained, self.clip or math.inf))
        values = dict(zip([*sums, "grad_norm"], torch.stack([*sums.values(), norm.float()]).tolist(), strict=True))
        self._check(values, window)
        self._update()
        return values

    def _backward(self, window: Sequence[Loaded], weight: float) -> dict[str, Tensor]:
        """Add up the gradients of the window; return loss and logs, divided by ``weight``, over all processes."""
        totals: dict[str, Tensor] = {}
        for index, (batch, counted) in enumerate(window):
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            last = index == len(window) - 1
            with nullcontext() if last else without_gradient_exchange(self.model):
                with self.accelerator.autocast():
                    loss, logs = self.objective.loss(self.model, batch)
                share = counted / (weight or 1)  # a window of nothing but ignored pixels has neither loss nor weight
                self.accelerator.backward(loss * (share * self.accelerator.num_processes))
            for name, value in {"loss": loss, **logs}.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() * share
        reduced = self.accelerator.reduce(torch.stack(list(totals.values())), reduction="sum")
        return dict(zip(totals, reduced.unbind(), strict=True))

    def _check(self, values: dict[str, float], window: Sequence[Loaded]) -> None:
        """Raise unless loss and gradient are finite; fp16's first scales overflow, which its scaler deals with."""
        scaler = self.accelerator.scaler
        overflow = scaler is not None and scaler.get_scale() > 1
        if math.isfinite(values["loss"]) and (math.isfinite(values["grad_norm"]) or overflow):
            return
        ids = [
            str(name) for name in gather_object([name for batch, counted in window if counted for name in batch["id"]])
        ]
        lr = self.optimizer.param_groups[0]["lr"]
        raise NonFiniteLossError(
            f"loss {values['loss']:g}, gradient norm {values['grad_norm']:g}; learning rate {lr:g}; "
            f"samples: {', '.join(ids)}"
        )

    def _update(self) -> None:
        if self.accelerator.scaler is None:
            self.optimizer.step()
        else:
            self.accelerator.scaler.step(self.optimizer)
            self.accelerator.scaler.update()
