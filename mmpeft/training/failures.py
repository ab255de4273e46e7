"""The ways in which a training step fails, explained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig


class NonFiniteLossError(ValueError):
    """The loss or the gradient of a step is NaN or infinite; the weights are still those before the step."""


class OutOfDeviceMemoryError(RuntimeError):
    """The device's memory doesn't suffice for this configuration."""


@contextmanager
def explained_out_of_memory(config: TrainConfig) -> Iterator[None]:
    """Turn the device's out-of-memory error into one that names the settings to change."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemoryError(
            f"{error}\nOut of memory. What helps, in this order:\n{_advice(config)}"
        ) from error


def _advice(config: TrainConfig) -> str:
    lines = []
    if config.batch_size > 1:
        half, double = -(-config.batch_size // 2), config.accumulate * 2
        lines.append(
            f"train.batch_size={half} train.accumulate={double} (now {config.batch_size} and {config.accumulate}): "
            "the same optimizer steps with half the memory for activations"
        )
    if config.precision == "fp32":
        lines.append("train.precision=bf16 (now fp32)")
    evaluated = config.eval_batch_size or config.batch_size
    lines.append(f"train.eval_batch_size={-(-evaluated // 2)} (now {evaluated}), if it happened in an evaluation")
    lines.append("a smaller model.image_size or model, or an adapter with fewer layers (layers: last:4)")
    return "\n".join(f"  - {line}" for line in lines)
