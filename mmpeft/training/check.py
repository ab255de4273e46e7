"""Trying a configuration before a long run: a look at the data, and one step."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import torch

from mmpeft.inspection.live_bytes import LiveBytes
from mmpeft.inspection.outline import tensors
from mmpeft.inspection.step_memory import size
from mmpeft.kernels.quantized import stored_bytes
from mmpeft.training import memory
from mmpeft.training.trainer import Trainer


def check_run(trainer: Trainer, describe: Callable[[int], str]) -> None:
    """Print three decoded training samples, make one optimizer step, print its numbers and memory; nothing is written.

    ``describe`` says what is to be learned of the training sample with a given index.
    """
    for index in range(min(3, len(trainer.data.train))):
        sample = trainer.data.train[index]
        print(f"sample {sample['id']}: {describe(index)}{_pixels(sample['image']) if 'image' in sample else ''}")
    if not trainer.adapters.parameters():
        print("nothing to train: the adapter has no parameters")
        return
    window = trainer.first_window()
    predicted = trainer.predict_step(window)
    weights = [*trainer.plain.parameters(), *trainer.plain.buffers()]
    memory.reset_peak()
    start = monotonic()
    with LiveBytes([*weights, *tensors(window)]) as live:
        values = trainer.try_step(window)
    numbers = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    held = sum(map(stored_bytes, [*weights, *tensors(window)]))
    print(f"one step: {numbers}; {monotonic() - start:.2f} s; {size(held + live.most)} of tensors at its peak")
    print(f"peak memory: {memory.peak_bytes() / 2**20:.0f} MiB ({memory.kind()})")
    print(f"from the second step on, {predicted}")


def _pixels(image: torch.Tensor) -> str:
    return f", image {tuple(image.shape)}, values {image.min():.2f} to {image.max():.2f}, mean {image.mean():.2f}"
