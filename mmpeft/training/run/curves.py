"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmpeft.files import replaced_file

PLACE = {"step", "epoch", "split"}
SPLITS = ("train", "validation")


def draw_curves(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw every value of ``metrics.jsonl`` over the steps, one panel per name, training and validation together."""
    drawn = [record for record in records if record["split"] in SPLITS]
    names = list(dict.fromkeys(name for record in drawn for name in record if name not in PLACE))
    figure = Figure(figsize=(4.5 * len(names), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split in SPLITS:
            points = [
                (record["step"], record[name]) for record in records if record["split"] == split and name in record
            ]
            if points:
                marker = "o" if split == "validation" else None
                axes.plot(*zip(*points, strict=True), label=split, marker=marker, markersize=4, linewidth=1.2)
        axes.set(title=name.replace("_", " "), xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    with replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=120)
