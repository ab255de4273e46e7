"""A training small enough for tests, as functions and as a program: ``training_program.py OUTPUT key=value ...``."""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from timm.models import VisionTransformer
from torch import Tensor, nn

import mmpeft
from mmpeft.objectives.classification import Classification
from mmpeft.training.config import TrainConfig
from mmpeft.training.parallel import whole
from mmpeft.training.run.checkpoints import checkpoints
from mmpeft.training.trainer import Trainer

CLASSES = 3


@dataclass(frozen=True)
class Pictures:
    """Random pictures of three classes; with ``noise`` each draw differs, from all three generators."""

    count: int
    seed: int
    noise: float = 0.0
    delay: float = 0.0

    @property
    def ids(self) -> list[str]:
        return [f"picture-{self.seed}-{index}" for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        time.sleep(self.delay)
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        image = torch.randn(3, 16, 16, generator=generator)
        image[index % CLASSES] += 1.0
        if self.noise:
            image = image + self.noise * (torch.randn(()) + random.random() + np.random.random())
        return {"image": image.float(), "label": index % CLASSES, "id": self.ids[index]}


@dataclass(frozen=True)
class Splits:
    train: Pictures
    val: Pictures
    test: Pictures


def make_splits(noise: float = 0.0, delay: float = 0.0) -> Splits:
    return Splits(Pictures(22, 1, noise, delay), Pictures(11, 2), Pictures(11, 3))


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return VisionTransformer(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=CLASSES)


def make_trainer(
    output: Path,
    data: Splits | None = None,
    dropout: float = 0.0,
    layers: str = "all",
    methods: Any = None,
    objective: Any = None,
    memory: Any = "standard",
    **settings: Any,
) -> Trainer:
    model = make_model()
    methods = methods or [mmpeft.LoRA(rank=2, dropout=dropout, layers=layers), mmpeft.LinearProbe()]
    adapters = mmpeft.adapt(model, methods)
    mmpeft.use_memory(model, memory)
    defaults = {"epochs": 3, "batch_size": 4, "lr": 1e-2, "weight_decay": 0.1, "warmup_steps": 2}
    config = TrainConfig.model_validate(defaults | settings)
    return Trainer(model, adapters, objective or Classification(), data or make_splits(), config, output)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """The adapter's present weights, whole, as copies."""
    return {name: whole(value).detach().clone() for name, value in trainer.adapters.named_parameters()}


def base_weights(trainer: Trainer) -> dict[str, Tensor]:
    model = trainer.adapters.modules[""]
    return {n: whole(p).detach().clone() for n, p in model.named_parameters() if not n.startswith("mmpeft.")}


def resume_again(trainer: Trainer, output: Path, options: dict[str, Any]) -> None:
    """Resume a finished run from the checkpoint before its last, in the same processes; the weights must agree."""
    expected = weights(trainer)
    if trainer.accelerator.is_main_process:
        shutil.rmtree(checkpoints(output / "checkpoints")[-1])
    trainer.accelerator.wait_for_everyone()
    again = make_trainer(output, **options, resume="latest")
    again.fit()
    assert all(torch.equal(expected[name], value) for name, value in weights(again).items()), "resumed differently"


def main(output: str, *overrides: str) -> None:
    """Train with the overrides; ``noise``, ``dropout``, ``layers``, ``memory``, ``delay`` belong to data and model."""
    torch.set_num_threads(1)
    options = {key: yaml.safe_load(value) for key, value in (override.split("=", 1) for override in overrides)}
    data, again = make_splits(noise=options.pop("noise", 0.0), delay=options.pop("delay", 0.0)), options.pop("again", 0)
    trainer = make_trainer(Path(output), data, **options)
    before = base_weights(trainer)
    result = trainer.fit()
    after = base_weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before), "the base has changed"
    outcome = {"weights": weights(trainer), "result": result, "test": trainer.evaluate("test")}
    if again:
        resume_again(trainer, Path(output), options)
    if trainer.accelerator.is_main_process:
        torch.save({**outcome, "processes": trainer.accelerator.num_processes}, Path(output) / "outcome.pt")
    if trainer.accelerator.num_processes > 1:
        leave(trainer)


def leave(trainer: Trainer) -> None:
    """End together, without tearing down: once in many runs a process aborted there (exit code -6)."""
    trainer.accelerator.wait_for_everyone()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
