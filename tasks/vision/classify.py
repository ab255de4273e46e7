"""Image classification: adapt a pretrained vision model to labelled images.

mmpeft train vision/adaptformer_digits
python tasks/vision/classify.py configs/vision/adaptformer_digits.yaml train.lr=1e-3
accelerate launch tasks/vision/classify.py configs/vision/adaptformer_digits.yaml
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

from accelerate.utils import set_seed
from pydantic import Field
from torch import nn

import mmpeft
from mmpeft.assembly import task
from mmpeft.assembly.task import add_adapters, load_adapters
from mmpeft.data import DataSplits, load_data
from mmpeft.data.samples import Sample
from mmpeft.objectives.classification import Classification
from mmpeft.training.check import check_run
from mmpeft.training.config import RunConfig
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.run.report import train_and_report
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.training.trainer import Trainer


class Config(RunConfig):
    """One run of image classification."""

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: scores are of the best adapter."""
    RunDirectory(config.output).claim(config.train.resume)
    trainer, data = build(config)
    loading = f'model = mmpeft.load_model("{config.model.name}", num_classes={len(data.classes)})'
    return train_and_report(trainer, config, loading)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    trainer, data = build(config)
    print(trainer.adapters.report())
    check_run(trainer, data.train.describe)


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    model, data = load_adapted(config)
    return evaluate_split(model, make_objective(config), data, config.train, config.output)


def predict(config: Config, index: int) -> tuple[Sample, dict[str, float]]:
    """Return a test sample, and the probability of each class by the adapter of a finished run."""
    model, data = load_adapted(config)
    return task.test_sample(data.test, index), task.probabilities(model, data, index)


def build(config: Config) -> tuple[Trainer, DataSplits]:
    """Put together a trainer: the model with its adapters, the data and the objective."""
    model, data = load(config)
    adapters = add_adapters(model, config, head=True)
    return Trainer(model, adapters, make_objective(config), data, config.train, config.output), data


def load_adapted(config: Config) -> tuple[nn.Module, DataSplits]:
    """Load the data, and a fresh model with the adapters that the run directory holds."""
    model, data = load(config)
    load_adapters(model, config)
    return model, data


def load(config: Config) -> tuple[nn.Module, DataSplits]:
    """Load the data as the model wants it, and the model with a new head for the data's classes."""
    set_seed(config.train.seed)
    sketch = mmpeft.load_model(config.model.name, image_size=config.model.image_size, device="meta")
    data = load_data(config.data, sketch)
    classes = len(data.classes)
    model = mmpeft.load_model(config.model.name, num_classes=classes, image_size=config.model.image_size)
    return model, data


def make_objective(config: Config) -> Classification:
    """Return the cross entropy of the configuration."""
    return Classification(config.label_smoothing)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
