"""Accuracy by the number of examples in the prompt, of a frozen model and finished adapters side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmpeft.data.language.demonstrations import Prompts, draw_examples
from mmpeft.data.language.labelled import LabelledRows
from mmpeft.data.language.task_rows import TaskRow
from mmpeft.files import replaced_file
from mmpeft.heads.token_probabilities import TokenScorer
from mmpeft.objectives.in_context import Choices, calibrate, score_choices

Accuracies = Mapping[str, Mapping[int, Sequence[float]]]
"""By adapter and number of examples, one for each seed."""


@dataclass(frozen=True)
class Shots:
    """Encoded prompts of the test rows with the same examples."""

    examples: Sequence[TaskRow]
    asked: Sequence[Choices]
    content_free: Sequence[Choices]
    labels: Sequence[int]

    def accuracy(self, scorer: TokenScorer, batch_size: int) -> float:
        """Return the share of test rows whose label is the likeliest; calibrated if there are content-free inputs."""
        scores = score_choices(scorer, self.asked, batch_size)
        if self.content_free:
            scores = calibrate(scores, score_choices(scorer, self.content_free, batch_size))
        return (scores.argmax(-1) == torch.tensor(self.labels)).float().mean().item()


def make_shots(
    prompts: Prompts, rows: LabelledRows, count: int, seed: int, calibration: Sequence[str], limit: int
) -> Shots:
    """Draw ``count`` examples and encode the prompts of all test rows behind them.

    Raises:
        ValueError: If there are too few examples, or a prompt has more than ``limit`` tokens.
    """
    test = rows.parts["test"]
    examples = draw_examples(rows.parts, rows.classes, count, seed)
    asked = [prompts.encode(examples, row.fields) for row in test]
    longest, row = max(
        (max(len(tokens) for tokens, _ in choices), row.id) for choices, row in zip(asked, test, strict=True)
    )
    if longest > limit:
        raise ValueError(
            f"shots: {count}: the prompt of {row} has {longest} tokens (seed {seed}), and the model or data.max_length "
            f"takes {limit}: fewer shots, or shorter texts"
        )
    free = [prompts.encode(examples, {"text": text, "text_pair": text}) for text in calibration]
    return Shots(examples, asked, free, [row.fields["label"] for row in test])


def by_count(scorer: TokenScorer, drawn: Mapping[tuple[int, int], Shots], batch_size: int) -> dict[int, list[float]]:
    """Return the accuracies of the active adapters by number of examples, one for each seed that drew them."""
    accuracies: dict[int, list[float]] = {}
    for (count, _), shots in drawn.items():
        accuracies.setdefault(count, []).append(shots.accuracy(scorer, batch_size))
    return accuracies


def table(accuracies: Accuracies) -> str:
    """Return the mean accuracies as text, with their standard deviation over seeds if there are several."""
    counts = list(next(iter(accuracies.values())))
    rows = [["adapter", *(f"k = {count}" for count in counts)]]
    rows += [[name, *(_written(by_count[count]) for count in counts)] for name, by_count in accuracies.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def draw_accuracies(accuracies: Accuracies, chance: float, path: Path) -> None:
    """Draw the mean accuracy of each adapter over the number of examples."""
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, by_count in accuracies.items():
        deviations = [_deviation(values) for values in by_count.values()]
        axes.errorbar(
            list(by_count),
            [fmean(values) for values in by_count.values()],
            deviations,
            label=name,
            marker="o",
            capsize=3,
        )
    axes.axhline(chance, color="grey", linestyle=":", label="chance")
    axes.set(xlabel="examples in the prompt", ylabel="test accuracy", xticks=list(next(iter(accuracies.values()))))
    axes.grid(alpha=0.3)
    axes.legend()
    with replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _written(values: Sequence[float]) -> str:
    return f"{fmean(values):.4f}" + (f" ± {_deviation(values):.4f}" if len(values) > 1 else "")
