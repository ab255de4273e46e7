"""``mmpeft train``, ``eval``, ``predict`` and ``check``: a configuration handed to the task script that it names."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from mmpeft.cli.console import print_picture, print_table
from mmpeft.cli.shipped import UnknownNameError, find_config, find_task, load_task
from mmpeft.configuration import Document
from mmpeft.methods import registry
from mmpeft.plugins import METHODS, unavailable
from mmpeft.settings import ConfigError
from mmpeft.training.config import RunConfig, read_run
from mmpeft.training.run.run_directory import RunDirectory


def train(options: Namespace) -> Any:
    """Train; the task's ``run`` returns metrics, whose test scores are printed, or an exit code."""
    task, config, _ = load_run(find_config(options.config), options.overrides)
    outcome = verb(task, config, "run")(config)
    if isinstance(outcome, dict) and os.environ.get("RANK", "0") == "0":
        _print_scores(outcome["test"])
        print(f"run directory: {config.output}")
    return outcome


def check(options: Namespace) -> Any:
    """Try a configuration; the task's ``check`` prints what it finds."""
    task, config, _ = load_run(find_config(options.config), options.overrides)
    return verb(task, config, "check")(config)


def evaluate(options: Namespace) -> None:
    """Evaluate the adapter of a run directory on the test split, and write the scores to ``evaluation.json`` there."""
    task, config = finished(options.run, options.overrides)
    scores = verb(task, config, "evaluate")(config)
    RunDirectory(config.output).write_json("evaluation.json", {"test": scores})
    _print_scores(scores)


def _print_scores(scores: Mapping[str, float]) -> None:
    print_table(["test", ""], [[name, f"{score:.4f}"] for name, score in scores.items()])


def predict(options: Namespace) -> None:
    """Show one test sample, and what the adapter of a run directory says of it; what it wrote; or where it drew."""
    task, config = finished(options.run, options.overrides)
    prediction = verb(task, config, "predict")(config, options.index)
    if prediction.picture is not None:
        print(f"picture: {prediction.picture}")
    if prediction.text is not None:
        print(prediction.text)
    if prediction.sample is not None:
        sample = prediction.sample
        print_picture(sample.open())
        truth = f" is {sample.label}" if sample.label is not None else ""
        print(f"{sample.id}{truth}; the adapter of {config.output} says {prediction.likeliest()}")


def verb(task: Any, config: RunConfig, name: str) -> Callable[..., Any]:
    """Return what a task does for a command.

    Raises:
        ValueError: If it does nothing of the kind: a task that trains nothing has nothing to evaluate.
    """
    if not hasattr(task, name):
        raise ValueError(f"task: {config.task!r} has no {name!r}")
    does: Callable[..., Any] = getattr(task, name)
    return does


def finished(directory: str, overrides: Iterable[str] = ()) -> tuple[Any, RunConfig]:
    """Return the task and the configuration of a run directory."""
    run = Path(directory)
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"RUN {directory!r}: there is no {run / 'config.yaml'}, so it is no run directory")
    try:
        task, config, _ = load_run(run / "config.yaml", [f"output={run}", *overrides])
    except ConfigError as error:
        raise ConfigError(error.title, [*error.problems, *_missing_packages(run)]) from None
    return task, config


def _missing_packages(run: Path) -> list[str]:
    """Say which packages the methods of a run came from, of those that are not known here."""
    path = run / "environment.json"
    methods = json.loads(path.read_text(encoding="utf-8")).get("methods", {}) if path.is_file() else {}
    return [
        f"the run was made with the method {name!r} of {package}, which {unavailable(METHODS, name)}"
        for name, package in methods.items()
        if name not in registry()
    ]


class _AnyTask(RunConfig):
    """Stands in for the configuration of a task that there is not: what else is wrong is told all the same."""

    model_config = ConfigDict(extra="allow")


def load_run(path: Path, overrides: Iterable[str]) -> tuple[Any, RunConfig, Document]:
    """Return the task that a configuration names, the configuration as the task's type, and its document."""
    document = read_run(path, overrides)
    name = document.data.get("task")
    task = None
    if isinstance(name, str):
        try:
            task = load_task(find_task(name))
        except UnknownNameError as error:
            document.problems.append(f"task ({document.origin('task')}): {error}")
    config = document.validate(task.Config if task else _AnyTask)
    assert task is not None
    return task, config, document
