"""Base to new: adapt to one half of the classes, and test on it and on the other half, which was never seen.

mmpeft train vlm/base_to_new_maple_scenes
mmpeft train vlm/base_to_new_maple_scenes seeds='[1, 2, 3]'
python tasks/vlm/base_to_new.py configs/vlm/base_to_new_maple_scenes.yaml data.style=neon
"""

from __future__ import annotations

import sys
from typing import Any

from mmpeft.assembly import task
from mmpeft.assembly.repeats import harmonic_mean, repeat
from mmpeft.assembly.zero_shot import (
    ZeroShotConfig,
    load_adapted,
    load_classifier,
    make_objective,
    make_trainer,
    train_classifier,
)
from mmpeft.data import DataSplits
from mmpeft.data.samples import Sample
from mmpeft.heads.zero_shot import ZeroShotClassifier
from mmpeft.training.check import check_run
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.run.run_directory import RunDirectory


class Config(ZeroShotConfig):
    """One run of base to new, or its repetition over seeds."""


def run(config: Config) -> dict[str, Any]:
    """Train on the base classes, test on both halves, write the run directory and return its metrics.

    ``harmonic_mean`` is that of the two accuracies; over seeds it is the mean of the runs' harmonic means, and
    ``harmonic_mean_of_means`` that of the mean accuracies, which is what the papers' tables show.
    """
    RunDirectory(config.output).claim(config.train.resume)
    refuse(config)
    if not config.seeds:
        return run_once(config)
    metrics = repeat(config, run_once, (), config.seeds)
    means = metrics["test"]
    metrics["test"] = {**means, "harmonic_mean_of_means": harmonic_mean(means["base"], means["new"])}
    RunDirectory(config.output).write_json("metrics.json", metrics)
    return metrics


def run_once(config: Config) -> dict[str, Any]:
    """Train and test with one seed."""
    metrics = train_classifier(half(config, "base"))
    frozen = {"base": metrics["frozen"]["accuracy"], "new": accuracy(config, *load_classifier(half(config, "new")))}
    scores = {"test": evaluate(config), "frozen": frozen}
    for own in scores.values():
        own["harmonic_mean"] = harmonic_mean(own["base"], own["new"])
    metrics |= scores
    RunDirectory(config.output).write_json("metrics.json", metrics)
    return metrics


def evaluate(config: Config) -> dict[str, float]:
    """Return the accuracy of the adapter of a finished run on the test images of either half."""
    return {name: accuracy(config, *load_adapted(half(config, name))) for name in ("base", "new")}


def accuracy(config: Config, model: ZeroShotClassifier, data: DataSplits) -> float:
    """Return the accuracy of a classifier on the test images of its classes."""
    return evaluate_split(model, make_objective(config), data, config.train, config.output)["accuracy"]


def half(config: Config, name: str) -> Config:
    """Return the configuration with one half of the classes."""
    return config.model_copy(update={"data": config.data.model_copy(update={"half": name})})


def refuse(config: Config) -> None:
    """Raise a ValueError for methods that know no other classes than those they were trained on."""
    bound = [method.label() for methods in config.adapters.values() for method in methods if method.binds_classes]
    if bound:
        raise ValueError(f"adapters: {', '.join(bound)} learns the classes themselves, and can't tell new ones apart")


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    refuse(config)
    trainer, _, data = make_trainer(half(config, "base"))
    print(trainer.adapters.report())
    check_run(trainer, data.train.describe)


def predict(config: Config, index: int) -> tuple[Sample, dict[str, float]]:
    """Return a test sample of the new classes, and the probability of each by the adapter of a finished run."""
    model, data = load_adapted(half(config, "new"))
    return task.test_sample(data.test, index), task.probabilities(model, data, index)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
