"""The optimizer: AdamW, with moments of 8 bits, on LoRA-FA's gradients, or SGD; its state by parameters' names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from mmpeft.kernels.plain import is_plain
from mmpeft.optional import require
from mmpeft.training.adamw import MasterAdamW, ProjectedAdamW
from mmpeft.training.parallel import like

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig

Parameters = dict[str, torch.nn.Parameter]
Fixed = Mapping[str, tuple[Tensor, float]]
FUSED = ("cpu", "cuda")
"""Where torch has AdamW in one kernel: on a CPU a third of the time of its loop, and without tensors in between."""


def make_optimizer(
    parameters: Parameters,
    config: TrainConfig,
    rates: Mapping[str, float] = MappingProxyType({}),
    fixed: Fixed = MappingProxyType({}),
) -> Optimizer:
    """Return the optimizer of ``config`` over ``parameters``; the one-dimensional ones are decayed only by ``all``.

    ``rates`` are factors on the learning rate of single parameters, by name; ``fixed`` the A and the scale s of those
    that are the B of a low-rank delta whose A is not trained.

    Raises:
        ValueError: If ``lora_fa`` is asked for and no A is fixed.
        ImportError: If ``adamw8bit`` is asked for and bitsandbytes is not installed.
    """
    members: dict[tuple[bool, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decayed = parameter.ndim > 1 or config.decayed == "all"
        members.setdefault((decayed, rates.get(name, 1.0)), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": alike, "weight_decay": config.weight_decay * decayed, "lr": config.lr * rate, "rate": rate}
        for (decayed, rate), alike in (members or {(True, 1.0): []}).items()
    ]
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    how: dict[str, Any] = {"lr": config.lr, "betas": config.betas}
    how |= {} if config.eps is None else {"eps": config.eps}
    if config.optimizer == "adamw8bit":
        optimizer: Optimizer = require("bitsandbytes", "bitsandbytes").optim.AdamW8bit(groups, **how)
        return optimizer
    if config.optimizer == "adamw":
        fused = all(is_plain(parameter) and parameter.device.type in FUSED for parameter in parameters.values())
        return MasterAdamW(groups, **how, fused=fused or None)
    if not fixed:
        raise ValueError(
            "train.optimizer: 'lora_fa' projects by a frozen A, and no adapter has one: take method lora_fa"
        )
    return ProjectedAdamW(groups, {parameters[name]: factors for name, factors in fixed.items()}, **how)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]


def state_of(optimizer: Optimizer, parameters: Parameters) -> dict[str, Tensor]:
    """Return the optimizer's tensors (moments, their scales, step counts) as ``<parameter>/<key>``."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
        if value is not None
    }


def restore_state(optimizer: Optimizer, parameters: Parameters, state: dict[str, Tensor]) -> None:
    """Put back what ``state_of`` returned."""
    for path, value in state.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        if key == "step" and not isinstance(optimizer, (AdamW, SGD)):
            optimizer.state[parameter][key] = int(value)
        elif key == "step":
            optimizer.state[parameter][key] = value.to(parameter.device) if optimizer.defaults.get("fused") else value
        elif value.shape == parameter.shape:
            optimizer.state[parameter][key] = like(value, parameter)
        else:
            optimizer.state[parameter][key] = value.to(parameter.device)
