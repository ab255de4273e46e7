"""Trying a configuration before a long run: a look at the data, and one step."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import torch

from mmpeft.training import memory
from mmpeft.training.trainer import Trainer


def check_run(trainer: Trainer, describe: Callable[[int], str]) -> None:
    """Print three decoded training samples, make one optimizer step, print its numbers; nothing is written.

    ``describe`` says what is to be learned of the training sample with a given index.
    """
    for index in range(min(3, len(trainer.data.train))):
        sample = trainer.data.train[index]
        print(f"sample {sample['id']}: {describe(index)}{_pixels(sample['image']) if 'image' in sample else ''}")
    if not trainer.adapters.parameters():
        print("nothing to train: the adapter has no parameters")
        return
    memory.reset_peak()
    start = monotonic()
    values = trainer.try_step()
    print(
        f"one step: {', '.join(f'{name} {value:.4f}' for name, value in values.items())}; {monotonic() - start:.2f} s"
    )
    print(f"peak memory: {memory.peak_bytes() / 2**20:.0f} MiB ({memory.kind()})")


def _pixels(image: torch.Tensor) -> str:
    return f", image {tuple(image.shape)}, values {image.min():.2f} to {image.max():.2f}, mean {image.mean():.2f}"
