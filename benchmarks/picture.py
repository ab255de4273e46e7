"""What benchmarks/*.py have left in benchmarks/out: all tables in one file, the aims in the first, and two pictures.

python benchmarks/picture.py out/bench injection train_vit ...            the folder, and the benchmarks to take
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from measure import HERE, REFERENCE, table

Record = dict[str, Any]
Sides = dict[str, Record]
"""The records of one model in one precision, by side."""
DRAWN = {
    "floor": "floor",
    "standard": "mmpeft standard",
    "lean": "mmpeft lean",
    "leanest": "mmpeft leanest",
    "peft": "peft",
    "peft,\nautocast": "peft, autocast",
    "peft, bf16\nadapters": "peft, bf16 adapters",
    "full\nfine-tuning": "full fine-tuning",
}
"""Bars from left to right."""
AIMS = ("model, precision", "standard: step / floor", "lean: step / peft", "lean: kept / peft", "lean: kept / floor",
        "leanest: step / peft", "leanest: kept / peft")  # fmt: skip


def results(names: list[str]) -> dict[str, Record]:
    """Return what each benchmark has left, by name."""
    return {name: json.loads((HERE / "out" / f"{name}.json").read_text()) for name in names}


def by_side(found: dict[str, Record], precision: str) -> dict[str, Sides]:
    """Return the training steps in one precision by model."""
    steps = {name: own["rows"] for name, own in found.items() if name.startswith("train_")}
    return {
        name.removeprefix("train_"): {row["side"]: row for row in rows if row["precision"] == precision}
        for name, rows in steps.items()
    }


def aims(model: str, precision: str, sides: Sides) -> tuple[str, ...]:
    """Return the row of a model."""
    standard, lean, leanest = (sides[f"mmpeft {level}"] for level in ("standard", "lean", "leanest"))
    peft, floor = sides[REFERENCE[precision]]["kept"], sides["floor"]["kept"]
    values = (standard["over_floor"], lean["over_peft"], lean["kept"] / peft, lean["kept"] / floor,
              leanest["over_peft"], leanest["kept"] / peft)  # fmt: skip
    return (f"{model}, {precision}", *(f"{value:.2f}" for value in values))


def draw(found: dict[str, Record], over: Callable[[Record, Record], float], title: str, path: Path) -> None:
    """Draw bars of what a side takes over what peft, as it is used, takes, for each model: a panel per precision."""
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (precision, reference) in zip(figure.subplots(1, 2, sharey=True), REFERENCE.items(), strict=True):
        models = by_side(found, precision)
        labels = [label for label, side in DRAWN.items() if all(side in sides for sides in models.values())]
        for number, (model, sides) in enumerate(models.items()):
            heights = [over(sides[DRAWN[label]], sides[reference]) for label in labels]
            places = [place + (number - (len(models) - 1) / 2) * 0.8 / len(models) for place in range(len(labels))]
            axes.bar(places, heights, 0.8 / len(models), label=model)
        axes.set_xticks(range(len(labels)), labels)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(title=f"{title}, {precision}", ylabel=f"over {reference!r}")
        axes.grid(axis="y", alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Write the tables and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("names", nargs="+", help="the benchmarks to take")
    options = parser.parse_args()
    found = results(options.names)
    options.folder.mkdir(parents=True, exist_ok=True)
    reached = [aims(m, precision, sides) for precision in REFERENCE for m, sides in by_side(found, precision).items()]
    first = f"# Steps and bytes kept for the backward pass, by level of memory\n\n{table(AIMS, reached)}\n"
    rest = [
        f"\n# {name}\n\n{own['command']}; {own['machine']}; {own['load']}; {own['date']}; {own['versions']}\n\n"
        f"{own['table']}\n"
        for name, own in found.items()
    ]
    (options.folder / "tables.md").write_text("".join([first, *rest]))
    kept, steps = "bytes kept for the backward pass", "time of a step"
    draw(found, lambda own, peft: own["kept"] / peft["kept"], kept, options.folder / "kept.png")
    draw(found, lambda own, peft: own["over_peft"], steps, options.folder / "steps.png")
    print(f"{first}\nAll tables are in {options.folder / 'tables.md'}, pictures beside it.")


if __name__ == "__main__":
    main()
