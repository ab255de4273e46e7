"""Measure the table of docs/embedded.md: every way to use `tiny/vit` on the digits, five seeds each, as markdown.

A seed picks the 20 training images per class, the initialisation and the order; the 200 validation images are always
the same and choose the epoch (and the C of logistic regressions), the rest is the test set. The methods are those of
configs/vision/*_digits.yaml. "Untrained" is the same network, freshly initialised by the seed.

    OMP_NUM_THREADS=1 python tools/digits_table.py

takes about half an hour on an idle core. Finished runs are kept under `--work` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from torch import nn
from torchvision.transforms.functional import to_tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mmpeft.data import DataConfig, ImageSplit, load_data  # noqa: E402
from mmpeft.training.config import read_run  # noqa: E402
from mmpeft.zoo import load_model  # noqa: E402
from mmpeft.zoo.cards import WEIGHTS  # noqa: E402
from tasks.vision.classify import Config, run  # noqa: E402

STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
FROM_SCRATCH = ("train.epochs=120", "train.lr=1e-3", "train.evaluate_every=20")
REGRESSIONS = {"raw pixels": None, "features of the untrained network": False, "features of tiny/vit": True}
"""Logistic regressions: on pixels, or on the features of a network, pretrained or not."""
ROWS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    "from scratch": ("full_fine_tuning", False, FROM_SCRATCH),
    "linear probe": ("linear_probe", True, ()),
    "BitFit": ("bitfit", True, ()),
    "SSF": ("ssf", True, ()),
    "VPT-deep": ("vpt_deep", True, ()),
    "AdaptFormer": ("adaptformer", True, ()),
    "LoRA": ("lora", True, ()),
    "full fine-tuning": ("full_fine_tuning", True, ()),
}
"""Training runs: configuration, whether the network is pretrained, and overrides."""
EVERY = [*(f"logistic regression, {name}" for name in REGRESSIONS), *ROWS]


def regress(pretrained: bool | None, seed: int) -> dict[str, Any]:
    """Fit a logistic regression to the 64 grey values or to standardised features, its C chosen on validation."""
    torch.manual_seed(seed)
    model = None if pretrained is None else load_model("tiny/vit", pretrained=pretrained)
    splits = load_data(DataConfig(name="digits", split_seed=seed), model or to_tensor)
    parts = [_features(split, model) for split in (splits.train, splits.val, splits.test)]
    mean, deviation = (parts[0].mean(0), parts[0].std(0)) if model else (0.0, 1.0)
    train, val, test = ((part - mean) / deviation for part in parts)
    fits = [LogisticRegression(C=c, max_iter=5000).fit(train, splits.train.labels) for c in STRENGTHS]
    best = max(fits, key=lambda fit: float(fit.score(val, splits.val.labels)))
    scores = {"validation": best.score(val, splits.val.labels), "test": best.score(test, splits.test.labels)}
    accuracies = {part: {"accuracy": float(score)} for part, score in scores.items()}
    return {"trainable_parameters": best.coef_.size + best.intercept_.size, **accuracies}


def _features(split: ImageSplit, model: nn.Module | None) -> np.ndarray:
    pictures = torch.stack([split[index]["image"] for index in range(len(split))])
    with torch.inference_mode():
        return (pictures[:, 0].flatten(1) if model is None else model(pictures)).numpy()


def untrained(seed: int, folder: Path) -> Path:
    """Write the same network with random weights, as a local model."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"untrained_{seed}.safetensors"
    save_file(load_model("tiny/vit", pretrained=False).state_dict(), path)
    path.with_suffix(".json").write_text((WEIGHTS / "tiny_vit.json").read_text())
    return path


def _file_name(row: str) -> str:
    return re.sub(r"[^a-zA-Z]+", "_", row)


def measure(row: str, seed: int, work: Path) -> dict[str, Any]:
    """Return a row's metrics for one seed."""
    if row not in ROWS:
        return regress(REGRESSIONS[row.removeprefix("logistic regression, ")], seed)
    method, pretrained, overrides = ROWS[row]
    model = "tiny/vit" if pretrained else str(untrained(seed, work / "untrained"))
    output = work / "runs" / f"{_file_name(row)}_{seed}"
    shutil.rmtree(output, ignore_errors=True)  # what an interrupted call left
    settings = [f"model={model}", f"output={output}", f"train.seed={seed}", f"data.split_seed={seed}"]
    path = ROOT / f"configs/vision/{method}_digits.yaml"
    return run(read_run(path, [*settings, *overrides]).validate(Config))


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Return the results as markdown: mean and standard deviation over the seeds, in percent."""
    lines = ["| | trainable | test accuracy | spread | validation | seeds |", "|---|--:|--:|--:|--:|--:|"]
    for row, runs in results.items():
        test, validation = ([100 * metrics[part]["accuracy"] for metrics in runs] for part in ("test", "validation"))
        spread = f"± {statistics.stdev(test):.1f}" if len(test) > 1 else ""
        parameters = f"{runs[0]['trainable_parameters']:,}"
        mean, chosen = statistics.mean(test), statistics.mean(validation)
        lines.append(f"| {row} | {parameters} | {mean:.1f} % | {spread} | {chosen:.1f} % | {len(runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is not measured yet, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mmpeft_digits_table"), help="finished runs")
    parser.add_argument("--rows", nargs="+", choices=EVERY, default=EVERY)
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {row: [] for row in options.rows}
    for seed in range(options.seeds):
        for row in options.rows:
            done = options.work / f"{_file_name(row)}_{seed}.json"
            if not done.exists():
                metrics = measure(row, seed, options.work)
                done.parent.mkdir(parents=True, exist_ok=True)
                done.write_text(json.dumps(metrics))
            results[row].append(json.loads(done.read_text()))
    print(table(results))


if __name__ == "__main__":
    main()
