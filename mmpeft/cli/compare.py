"""``mmpeft compare``: several configurations run one after another, then a table and a picture of their results."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpeft.cli.console import print_heading, print_table
from mmpeft.cli.run import load_run
from mmpeft.cli.shipped import find_config
from mmpeft.training.run.run_directory import RunDirectory

if TYPE_CHECKING:
    from mmpeft.training.config import RunConfig

COLUMNS = ("adapter", "trainable", "%", "test", "seconds", "peak memory")


def compare(options: Namespace) -> None:
    """Train each configuration into its own folder of the output; one that is finished there is not repeated."""
    names = [word for word in options.configs if "=" not in word]
    overrides = [word for word in options.configs if "=" in word and not word.startswith("output=")]
    outputs = [word.removeprefix("output=") for word in options.configs if word.startswith("output=")]
    output = Path(outputs[-1] if outputs else "runs/compare")
    if not names:
        raise ValueError("CONFIG: give at least one configuration to compare, a file or the name of a shipped one")
    paths = [find_config(name) for name in names]
    runs = [load_run(path, [*overrides, f"output={output / path.stem}"]) for path in paths]
    rows = []
    for number, (task, config, _) in enumerate(runs, 1):
        print_heading(f"{number} of {len(runs)}: {_label(config)}")
        rows.append((_label(config), RunDirectory(config.output).finished() or task.run(config)))
    print_table(COLUMNS, [*_frozen(rows[0][1]), *(_cells(label, metrics) for label, metrics in rows)])
    picture = draw(rows, output / "comparison.png", f"{runs[0][1].model.name} on {runs[0][1].data.title}")
    print(f"picture: {picture}; adapters: {output}/*/adapter")


def draw(rows: Sequence[tuple[str, dict[str, Any]]], path: Path, title: str) -> Path:
    """Draw the test score against the number of trainable parameters, and return the picture's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = _metric(rows[0][1])
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for label, metrics in rows:
        x, y = metrics["trainable_parameters"], metrics["test"][metric]
        axes.scatter(x, y, s=60, zorder=3)
        axes.annotate(label, (x, y), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9)
    if "frozen" in rows[0][1]:
        axes.axhline(rows[0][1]["frozen"][metric], linestyle="--", color="grey", label="none (frozen)")
        axes.legend(loc="lower right", fontsize=9)
    axes.set(xscale="log", xlabel="trainable parameters", ylabel=f"test {metric}", title=title)
    axes.margins(0.18)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    return path


def _label(config: RunConfig) -> str:
    return " + ".join(method.label() for methods in config.adapters.values() for method in methods)


def _frozen(metrics: dict[str, Any]) -> list[list[str]]:
    """Return a row for the model without adapters, where it can do the task by itself."""
    if "frozen" not in metrics:
        return []
    return [["none (frozen)", "0", "0.00", f"{metrics['frozen'][_metric(metrics)]:.4f}", "", ""]]


def _metric(metrics: dict[str, Any]) -> str:
    return next(name for name in metrics["test"] if name != "loss")


def _cells(label: str, metrics: dict[str, Any]) -> list[str]:
    trainable, total = metrics["trainable_parameters"], metrics["total_parameters"]
    score = f"{metrics['test'][_metric(metrics)]:.4f}"
    memory = f"{metrics['peak_memory_bytes'] / 2**20:.0f} MiB"
    return [label, f"{trainable:,}", f"{100 * trainable / total:.2f}", score, f"{metrics['seconds']:.0f}", memory]
