"""The accelerator of a run: devices, precision, processes and trackers as configured."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mmpeft.kernels.private_names import forget_accelerator

if TYPE_CHECKING:
    from mmpeft.training.config import TrainConfig


def make_accelerator(config: TrainConfig, output: Path) -> Accelerator:
    """Return an accelerator for the precision and trackers of ``config``; several runs may follow in one process."""
    missing = [name for name in config.trackers if find_spec(name) is None]
    if missing:
        raise ValueError(f"train.trackers: {', '.join(missing)} not installed: pip install {' '.join(missing)}")
    forget_accelerator(AcceleratorState)
    accelerator = Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        log_with=list(config.trackers) or None,
        project_dir=output,
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ValueError(
            f"the launcher started {launched} processes, but each sees only itself, and all would write to "
            f"{str(output)!r}: on a machine without GPUs set ACCELERATE_USE_CPU=true"
        )
    if config.precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("train.precision: 'fp16' needs a GPU: use bf16 or fp32 on a CPU")
    return accelerator


def start_trackers(accelerator: Accelerator, config: TrainConfig) -> None:
    """Open the configured trackers and give them the configuration."""
    values = config.model_dump(mode="json")
    plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in values.items()}
    accelerator.init_trackers("mmpeft", config=plain)


def finish_trackers(accelerator: Accelerator) -> None:
    """Close the trackers, and only them: ``end_training`` would end the process group as well."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers.clear()
