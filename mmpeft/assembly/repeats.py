"""Protocols that repeat a run: numbers of shots, seeds, and the mean over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, TypeVar

from accelerate import PartialState

from mmpeft.training.config import RunConfig
from mmpeft.training.run.run_directory import RunDirectory

Config = TypeVar("Config", bound=RunConfig)
VALIDATION = 4
"""Validation images of each class, if there are so many shots (Zhou et al. 2022)."""


def repetition(config: Config, shots: int | None, seed: int, output: Path) -> Config:
    """Return the configuration of one run: so many training images per class, drawn and trained by this seed."""
    data: dict[str, Any] = {"split_seed": seed}
    if shots is not None:
        data |= {"shots": shots, "per_class": shots, "validation": min(shots, VALIDATION)}
    train = config.train.model_copy(update={"seed": seed})
    return config.model_copy(
        update={"data": config.data.model_copy(update=data), "train": train, "output": output, "shots": (), "seeds": ()}
    )


def repeat(
    config: Config, run: Callable[[Config], Mapping[str, Any]], shots: Sequence[int], seeds: Sequence[int]
) -> dict[str, Any]:
    """Run every number of shots with every seed, each into its own folder; write and return means and deviations.

    A run that is finished there is not repeated. ``metrics.json`` has, by shots, the mean and the standard deviation
    (of the population) of each test score; ``test`` are the means of the largest number of shots.
    """
    directory = RunDirectory(config.output)
    table: dict[str, dict[str, Any]] = {}
    for count in shots or (None,):
        finished = []
        for seed in seeds or (config.train.seed,):
            name = f"seed_{seed}" if count is None else f"shots_{count}_seed_{seed}"
            one = repetition(config, count, seed, config.output / name)
            finished.append(RunDirectory(one.output).finished() or run(one))
        table[str(count or "all")] = _summary(finished)
    means = {name: values["mean"] for name, values in table[list(table)[-1]]["test"].items()}
    metrics = {"task": config.task, "model": config.model.name, "by_shots": table, "test": means}
    if PartialState().is_main_process:
        directory.write_json("metrics.json", metrics)
    return metrics


def harmonic_mean(first: float, second: float) -> float:
    """Return ``2 a b / (a + b)``, and 0 for two zeros."""
    return 2 * first * second / (first + second) if first + second else 0.0


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"runs": len(runs)}
    for split in ("test", "frozen"):
        scores = [run[split] for run in runs if split in run]
        if scores:
            columns = {name: [score[name] for score in scores] for name in scores[0]}
            summary[split] = {name: {"mean": fmean(values), "std": pstdev(values)} for name, values in columns.items()}
    return summary
