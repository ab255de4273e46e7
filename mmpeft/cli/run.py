"""``mmpeft train``, ``eval`` and ``check``: a configuration handed to the task script that it names."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ConfigDict

from mmpeft.cli.console import print_table
from mmpeft.cli.shipped import UnknownNameError, find_config, find_task, load_task
from mmpeft.configuration import Document
from mmpeft.training.config import RunConfig, read_run
from mmpeft.training.run_directory import RunDirectory


def train(options: Namespace) -> Any:
    """Train; the task's ``run`` may return an exit code."""
    task, config, _ = load_run(find_config(options.config), options.overrides)
    return task.run(config)


def check(options: Namespace) -> Any:
    """Try a configuration; the task's ``check`` prints what it finds."""
    task, config, _ = load_run(find_config(options.config), options.overrides)
    return task.check(config)


def evaluate(options: Namespace) -> None:
    """Evaluate the adapter of a run directory on the test split, and write the scores to ``evaluation.json`` there."""
    run = Path(options.run)
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"RUN {options.run!r}: there is no {run / 'config.yaml'}, so it is no run directory")
    task, config, _ = load_run(run / "config.yaml", [f"output={run}", *options.overrides])
    scores = task.evaluate(config)
    RunDirectory(run).write_json("evaluation.json", {"test": scores})
    print_table(["test", ""], [[name, f"{score:.4f}"] for name, score in scores.items()])


class _AnyTask(RunConfig):
    """Stands in for the configuration of a task that there is not: what else is wrong is told all the same."""

    model_config = ConfigDict(extra="allow")


def load_run(path: Path, overrides: Iterable[str]) -> tuple[ModuleType, RunConfig, Document]:
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
