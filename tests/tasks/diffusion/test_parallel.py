"""Two processes train as one does with the batch of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_pipelines import pictures, stable_diffusion

SCRIPT = Path(__file__).parents[3] / "tasks" / "diffusion" / "control.py"


def train(root: Path, name: str, batch_size: int, *launcher: str) -> list[dict[str, Any]]:
    methods = [{"method": "lora", "rank": 2, "towers": tower} for tower in ("unet", "text")]
    settings = {
        "task": "diffusion/control",
        "model": str(root / "model"),
        "adapters": {"main": {"method": "controlnet", "widths": [8, 16]}, "style": methods},
        "data": {"name": "captions", "path": str(root / "pictures"), "control": "edges", "augment": ["flip"]},
        "train": {"max_steps": 4, "batch_size": batch_size},
        "preview": {"every": 2, "steps": 1},
        "output": str(root / name),
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(settings))
    variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launcher, str(SCRIPT), str(path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_are_one_with_the_big_batch(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path / "model")
    pictures(tmp_path / "pictures")
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29641")
    one, two = train(tmp_path, "one", 4), train(tmp_path, "two", 2, *launcher)
    assert len(one) == len(two) == 8
    for left, right in zip(one, two, strict=True):
        assert (left.pop("split"), left.pop("pictures", None)) == (right.pop("split"), right.pop("pictures", None))
        assert left == pytest.approx(right, rel=1e-4)
