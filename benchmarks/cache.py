"""Epochs per minute with the cache of the frozen prefix and without it, in one process; the weights are checked.

python benchmarks/cache.py            about 4 minutes on idle cores; --write adds the table to benchmarks/RESULTS.md
python benchmarks/cache.py --quick    the embedded model alone and few rounds, half a minute
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import timm
import torch
from measure import Arm, Row, Timing, interleave, publish
from torch import Tensor, nn

import mmpeft
from mmpeft.data import load_data
from mmpeft.data.config import DataConfig
from mmpeft.objectives.classification import Classification
from mmpeft.training.config import TrainConfig
from mmpeft.training.trainer import Trainer

METHODS: dict[str, list[mmpeft.Method]] = {
    "linear probe": [mmpeft.LinearProbe()],
    "Side-Tuning": [mmpeft.SideTuning(), mmpeft.LinearProbe()],
    "LoRA, layers last:1": [mmpeft.LoRA(rank=8, layers="last:1"), mmpeft.LinearProbe()],
}
STORES = {"ours": "memory", "without": "off"}


@dataclass(frozen=True)
class Noise:
    """Pictures of noise, made when they are opened."""

    count: int
    size: int
    classes: int = 10

    @property
    def ids(self) -> list[str]:
        return [f"noise-{index}" for index in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(index))
        return {"image": image, "label": index % self.classes, "id": self.ids[index]}


@dataclass(frozen=True)
class NoiseSplits:
    train: Noise
    val: Noise
    test: Noise


@dataclass(frozen=True)
class Subject:
    """A model with data, and how long to train it."""

    name: str
    model: Callable[[], nn.Module]
    data: Any
    epochs: int
    rounds: int


def embedded(rounds: int) -> Subject:
    """Return tiny/vit with the digits, 160 for training, which are decoded and resized in every epoch."""
    data = load_data(DataConfig(name="digits"), mmpeft.load_model("tiny/vit", device="meta"))
    return Subject("tiny/vit", lambda: mmpeft.load_model("tiny/vit", num_classes=10), data, 10, rounds)


def small(rounds: int) -> Subject:
    """Return a ViT-S with random weights and 64 pictures of 96 x 96 pixels, in memory."""

    def model() -> nn.Module:
        return timm.create_model("vit_small_patch16_224", pretrained=False, img_size=96, num_classes=10)

    data = NoiseSplits(Noise(64, 96), Noise(16, 96), Noise(16, 96))
    return Subject("ViT-S, 96 pixels", model, data, 4, rounds)


class Timed(Trainer):
    """Keeps the seconds of each epoch of training, the time of this process's CPU alone."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.spent: list[float] = []

    def _train_epoch(self) -> None:
        start = time.process_time()
        super()._train_epoch()
        self.spent.append(time.process_time() - start)


@dataclass
class Comparison:
    """One method on one subject, with and without."""

    subject: Subject
    methods: list[mmpeft.Method]
    folder: Path
    runs: int = 0
    spent: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in STORES})
    weights: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def trainer(self, name: str) -> Timed:
        torch.manual_seed(0)
        model = self.subject.model()
        adapters = mmpeft.adapt(model, self.methods)
        own = {"batch_size": 32, "evaluate_every": 1000, "save_every": 1000, "cache": STORES[name]}
        config = TrainConfig.model_validate({"epochs": self.subject.epochs, **own})
        self.runs += 1
        objective = Classification()
        return Timed(model, adapters, objective, self.subject.data, config, self.folder / str(self.runs))

    def fit(self, name: str, trainer: Timed) -> None:
        """Train; the first epoch (which warms up) and the last (which validates and saves) don't count as epochs."""
        with redirect_stdout(StringIO()):
            trainer.fit()
        self.spent[name] += trainer.spent[1:-1]
        self.weights[name] = {key: value.detach().clone() for key, value in trainer.adapters.named_parameters()}

    def rows(self, what: str) -> list[Row]:
        arms = {name: Arm(lambda t, n=name: self.fit(n, t), lambda n=name: self.trainer(n)) for name in STORES}
        whole = interleave(self.subject.rounds, **arms)
        for key, value in self.weights["without"].items():
            torch.testing.assert_close(self.weights["ours"][key], value, rtol=1e-5, atol=1e-5)
        speed = {name: 60 / Timing(tuple(seconds)).median for name, seconds in self.spent.items()}
        return [
            Row(f"{what}: epochs per minute", *(f"{speed[n]:.0f}" for n in STORES), speed["ours"] / speed["without"]),
            Row(
                f"{what}: a run of {self.subject.epochs} epochs, with filling and validation",
                *(str(whole[name]) for name in STORES),
                whole["ours"].over(whole["without"]),
            ),
        ]


def main() -> None:
    """Measure everything and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the embedded model alone, and few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for subject in [embedded(2)] if options.quick else [embedded(4), small(2)]:
        for name, methods in METHODS.items():
            with tempfile.TemporaryDirectory() as folder:
                rows += Comparison(subject, methods, Path(folder)).rows(f"{subject.name}, {name}")
    publish("cache", rows, ("torch", "timm"), options.write, ("with", "without"))


if __name__ == "__main__":
    main()
