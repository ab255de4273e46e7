"""Scores of a model on a split."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpeft.objectives.base import Objective
from mmpeft.training.accelerator import make_accelerator
from mmpeft.training.loader import Loaded, Loaders, SplitName, Splits

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig


@torch.no_grad()
def evaluate(
    model: nn.Module, objective: Objective, batches: Iterable[Loaded], accelerator: Accelerator
) -> dict[str, float]:
    """Return the objective's scores over all batches and processes."""
    model.eval()
    for batch, counted in batches:
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        with accelerator.autocast():
            if counted:
                objective.update(model, batch)
            else:
                objective.idle(model, batch)
    return objective.compute()


def evaluate_split(
    model: nn.Module, objective: Objective, data: Splits, config: TrainConfig, output: Path, split: SplitName = "test"
) -> dict[str, float]:
    """Return the scores of a model on a split, without a trainer."""
    accelerator = make_accelerator(config, output)
    loaders = Loaders(data, config, accelerator.process_index, accelerator.num_processes)
    objective.to(accelerator.device)
    return evaluate(model.to(accelerator.device), objective, loaders.loader(split), accelerator)


def set_training_mode(model: nn.Module) -> None:
    """Put a model in training mode, but not its batch norms: their running statistics belong to the frozen base."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
