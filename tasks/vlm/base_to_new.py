"""Base to new: adapt to one half of the classes, and test on it and on the other half, which was never seen.

mmpeft train vlm/base_to_new_maple_scenes
mmpeft train vlm/base_to_new_maple_scenes seeds='[1, 2, 3]'
python tasks/vlm/base_to_new.py configs/vlm/base_to_new_maple_scenes.yaml data.style=neon
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from mmpeft.assembly.task import Task
from mmpeft.assembly.zero_shot_config import ZeroShotConfig
from mmpeft.training.run.run_directory import RunDirectory

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts
    from mmpeft.assembly.prediction import Prediction


class Config(ZeroShotConfig):
    """One run of base to new, or its repetition over seeds."""


def assemble(config: Config) -> Parts:
    """Load the data, and the zero-shot classifier of its classes."""
    from mmpeft.assembly import zero_shot

    return zero_shot.assemble(config)


class BaseToNew(Task[Config]):
    """Trains on the base classes, and tests on both halves."""

    def run(self, config: Config) -> dict[str, Any]:
        """Train, write the run directory and return its metrics.

        ``harmonic_mean`` is that of the two accuracies; over seeds it is the mean of the runs' harmonic means, and
        ``harmonic_mean_of_means`` that of the mean accuracies, which is what the papers' tables show.
        """
        from mmpeft.assembly.repeats import harmonic_mean, repeat

        RunDirectory(config.output).claim(config.train.resume)
        refuse_bound(config)
        if not config.seeds:
            return self._run_once(config)
        metrics = repeat(config, self._run_once, (), config.seeds)
        means = metrics["test"]
        metrics["test"] = {**means, "harmonic_mean_of_means": harmonic_mean(means["base"], means["new"])}
        RunDirectory(config.output).write_json("metrics.json", metrics)
        return metrics

    def _run_once(self, config: Config) -> dict[str, Any]:
        """Train and test with one seed."""
        from mmpeft.assembly.repeats import harmonic_mean

        metrics = super().run(half(config, "base"))
        unseen = self.assemble(half(config, "new")).evaluate()["accuracy"]
        scores = {"test": self.evaluate(config), "frozen": {"base": metrics["frozen"]["accuracy"], "new": unseen}}
        for accuracies in scores.values():
            accuracies["harmonic_mean"] = harmonic_mean(accuracies["base"], accuracies["new"])
        metrics |= scores
        RunDirectory(config.output).write_json("metrics.json", metrics)
        return metrics

    def evaluate(self, config: Config) -> dict[str, float]:
        """Return the accuracy of the adapter of a finished run on the test images of either half."""
        return {name: self.load_adapted(half(config, name)).evaluate()["accuracy"] for name in ("base", "new")}

    def check(self, config: Config) -> None:
        """Print what would be trained, three samples, and the numbers of one step; write no run directory."""
        refuse_bound(config)
        super().check(half(config, "base"))

    def predict(self, config: Config, index: int) -> Prediction:
        """Return a test image of the new classes, and the probability of each by the adapter of a finished run."""
        return super().predict(half(config, "new"), index)


def half(config: Config, name: str) -> Config:
    """Return the configuration with one half of the classes."""
    return config.model_copy(update={"data": config.data.model_copy(update={"half": name})})


def refuse_bound(config: Config) -> None:
    """Raise a ValueError for methods that know no other classes than those they were trained on."""
    bound = [method.label() for methods in config.adapters.values() for method in methods if method.binds_classes]
    if bound:
        raise ValueError(f"adapters: {', '.join(bound)} learns the classes themselves, and can't tell new ones apart")


TASK = BaseToNew(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
