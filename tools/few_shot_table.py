"""Measure the few-shot tables of docs/few_shot.md: methods of configs/vlm at 1 to 16 shots, three seeds each.

    OMP_NUM_THREADS=1 python tools/few_shot_table.py             (about an hour on an idle core)
    OMP_NUM_THREADS=1 python tools/few_shot_table.py scenes --shots 4 --seeds 1

A seed picks the training images (and at most four per class for validation), the initialisation and the order. It
writes docs/few_shot.png and prints the tables as markdown. Finished runs are kept under `--work` and not repeated.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmpeft.training.config import read_run  # noqa: E402
from tasks.vlm.few_shot import Config, run  # noqa: E402

METHODS = {
    "linear_probe": "linear probe",
    "coop": "CoOp",
    "maple": "MaPLe",
    "clip_adapter": "CLIP-Adapter",
    "tip_adapter_f": "Tip-Adapter-F",
    "clip_lora": "CLIP-LoRA",
}
DATA = {"scenes": "drawn shapes, neon (a style never seen)", "digits": "handwritten digits"}
Table = dict[str, dict[int, tuple[float, float]]]


def measure(data: str, shots: list[int], seeds: list[int], work: Path) -> Table:
    """Return the mean test accuracy and its standard deviation in percent, by method and shots."""
    table: Table = {"zero-shot": {}}
    for name, label in METHODS.items():
        overrides = [f"shots={shots}", f"seeds={seeds}", f"output={work / data / name}"]
        config = read_run(ROOT / "configs" / "vlm" / f"{name}_{data}.yaml", overrides).validate(Config)
        metrics = run(config)["by_shots"]
        table[label] = {k: _percent(metrics[str(k)]["test"]) for k in shots}
        table["zero-shot"] = {k: _percent(metrics[str(k)]["frozen"]) for k in shots}
    return table


def _percent(scores: dict[str, Any]) -> tuple[float, float]:
    return 100 * scores["accuracy"]["mean"], 100 * scores["accuracy"]["std"]


def markdown(table: Table, shots: list[int]) -> str:
    """Return a table as text."""
    lines = ["| method | " + " | ".join(f"{k} shots" for k in shots) + " |", "|---|" + "---:|" * len(shots)]
    lines += [
        f"| {name} | " + " | ".join(f"{m:.1f} ± {s:.1f}" for m, s in row.values()) + " |" for name, row in table.items()
    ]
    return "\n".join(lines)


def draw(tables: dict[str, Table], shots: list[int], path: Path) -> None:
    """Draw accuracy against shots, a panel per data set."""
    figure = Figure(figsize=(5.2 * len(tables), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, (data, table) in zip(panels, tables.items(), strict=True):
        for name, row in table.items():
            means, deviations = zip(*row.values(), strict=True)
            style = {"linestyle": "--", "color": "grey"} if name == "zero-shot" else {"marker": "o"}
            axes.errorbar(shots, means, deviations, capsize=2, label=name, **style)
        axes.set(xscale="log", xlabel="training images per class", ylabel="test accuracy, %", title=DATA[data])
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", nargs="*", default=[], help="scenes, digits or both")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--work", type=Path, default=Path("out/few_shot"))
    options = parser.parse_args()
    chosen = options.data or list(DATA)
    tables = {data: measure(data, options.shots, options.seeds, options.work) for data in chosen}
    for data, table in tables.items():
        print(f"\n### {DATA[data]}\n\n{markdown(table, options.shots)}")
    draw(tables, options.shots, ROOT / "docs" / "few_shot.png")


if __name__ == "__main__":
    main()
