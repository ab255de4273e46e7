"""Draw docs/tiny_llm_ppo.png: reward and divergence over the steps of runs/ppo_manners.

python tools/ppo_picture.py
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
TITLES = {"reward": "reward of a rule, at most 2", "kl": "nats of an answer away from the reference"}


def main() -> None:
    """Read the metrics and write the picture."""
    lines = (ROOT / "runs" / "ppo_manners" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    figure = Figure(figsize=(7, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
        for split, style in (("train", "-"), ("validation", "o")):
            drawn = [(own["step"], own[name]) for own in records if own["split"] == split]
            axes.plot(*zip(*drawn, strict=True), style, label=split, linewidth=1.2, markersize=4)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("step of 64 prompts")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(ROOT / "docs" / "tiny_llm_ppo.png", dpi=90)


if __name__ == "__main__":
    main()
