"""Few-shot classification: adapt a zero-shot classifier of CLIP or SigLIP to a few labelled images of each class.

mmpeft train vlm/coop_scenes
mmpeft train vlm/coop_scenes shots='[1, 2, 4, 8, 16]' seeds='[1, 2, 3]'
python tasks/vlm/few_shot.py configs/vlm/tip_adapter_f_scenes.yaml data.style=neon
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import PositiveInt

from mmpeft.assembly import task
from mmpeft.assembly.repeats import repeat
from mmpeft.assembly.zero_shot import ZeroShotConfig, load_adapted, make_objective, make_trainer, train_classifier
from mmpeft.data.samples import Sample
from mmpeft.training.check import check_run
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.run.run_directory import RunDirectory


class Config(ZeroShotConfig):
    """One run of few-shot classification, or its repetition over shots and seeds."""

    shots: tuple[PositiveInt, ...] = ()
    """Numbers of training images per class to repeat the run for (validation: at most 4); () takes the data's own."""


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics; with ``shots`` or ``seeds``, those of the repetitions."""
    RunDirectory(config.output).claim(config.train.resume)
    if config.shots or config.seeds:
        return repeat(config, train_classifier, config.shots, config.seeds)
    return train_classifier(config)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    trainer, _, data = make_trainer(config)
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


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
