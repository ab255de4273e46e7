"""Measure tables and curves of docs/language.md: runs of `tiny/llm` as in configs/llm, one seed each.

    OMP_NUM_THREADS=1 python tools/llm_table.py             (about a quarter of an hour on one core)

It writes docs/tiny_llm.png and prints scores as markdown. Finished runs are kept under `--work` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmpeft.cli.run import load_run  # noqa: E402
from mmpeft.training.run.run_directory import RunDirectory  # noqa: E402

RUNS: dict[str, tuple[str, ...]] = {
    "tasks": ("sft_tasks",),
    "refusals": ("sft_refusals",),
    "thoughts": ("sft_thoughts",),
    "answers": ("sft_thoughts", "data.path=tiny_answers"),
    "logbook": ("pretrain_logbook",),
    "moods_linear": ("classify_moods", "adapters={main: linear_probe}", "train.lr=1e-2"),
    "moods_lora": ("classify_moods",),
    "moods_full": ("classify_moods", "adapters={main: full_fine_tuning}", "train.lr=5e-4"),
}
"""A configuration and what is set in it."""
SCORES = ("exact_match", "refusal_rate", "over_refusal_rate", "perplexity", "accuracy")
PANELS = {
    "exact match": [(name, name, "exact_match") for name in ("tasks", "refusals", "thoughts", "answers")],
    "refused": [("harmful", "refusals", "refusal_rate"), ("harmless", "refusals", "over_refusal_rate")],
    "perplexity of ships' logs": [("logbook", "logbook", "perplexity")],
}
"""What is drawn in each panel: a name, the run, and its score in validation."""


def measure(work: Path) -> dict[str, dict[str, Any]]:
    """Return the metrics of each run."""
    found = {}
    for name, (config, *overrides) in RUNS.items():
        task, read, _ = load_run(ROOT / "configs" / "llm" / f"{config}.yaml", [*overrides, f"output={work / name}"])
        found[name] = RunDirectory(read.output).finished() or task.run(read)
    return found


def markdown(metrics: dict[str, dict[str, Any]]) -> str:
    """Return the test scores of each run, of the model without its adapters and with them."""
    lines = ["| run | score | frozen | tuned | trainable | seconds |", "|---|---|---|---|---|---|"]
    for name, one in metrics.items():
        for score in SCORES:
            if score in one["test"]:
                frozen = f"{one['frozen'][score]:.4f}" if "frozen" in one else "-"
                cells = (name, score, frozen, f"{one['test'][score]:.4f}", f"{one['trainable_parameters']:,}")
                lines.append(f"| {' | '.join(cells)} | {one['seconds']:.0f} |")
    return "\n".join(lines)


def curve(run: Path, score: str) -> tuple[list[float], list[float]]:
    """Return epochs, and a validation score after each."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = [row for row in rows if row["split"] == "validation"]
    return [row["epoch"] for row in seen], [row[score] for row in seen]


def draw(work: Path, metrics: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw validation scores by epoch; the test scores of the frozen models stand at 0."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, lines) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for label, name, score in lines:
            epochs, values = curve(work / name, score)
            (line,) = axes.plot(epochs, values, marker="o", label=label)
            axes.plot(0, metrics[name]["frozen"][score], marker="x", color=line.get_color())
        axes.set(xlabel="epoch (x: the frozen model, test)", title=f"{title}, validation")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Run what is not finished, print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs"))
    options = parser.parse_args()
    metrics = measure(options.work)
    print(markdown(metrics))
    draw(options.work, metrics, ROOT / "docs" / "tiny_llm.png")


if __name__ == "__main__":
    main()
