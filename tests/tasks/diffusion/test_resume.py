"""A diffusion training that was killed ends in the same bits, with everything on that is random or kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from tiny_pipelines import pictures, stable_diffusion

from mmpeft.cli import main

STEPS = 30


def write_config(root: Path, output: str, resume: str | None = None) -> Path:
    concept = {"path": str(root / "concept"), "prompt": ["a <new1> cat", "one <new1> cat"]}
    concept |= {"class_path": str(root / "class"), "class_prompt": "a cat"}
    words = {"method": "textual_inversion", "init": "cat"}
    settings = {
        "task": "diffusion/concept",
        "model": str(root / "model"),
        "adapters": {"main": [{"method": "lora", "rank": 2, "dropout": 0.1, "towers": "unet"}, words]},
        "data": {"name": "concepts", "concepts": [concept], "augment": ["flip"], "rescale": True, "views": 2},
        "train": {"max_steps": STEPS, "batch_size": 2, "ema": 0.9, "lr": 1e-2, "resume": resume},
        "loss": {"min_snr": 5, "noise_offset": 0.1, "drop": {"text": 0.2}, "times": "logit_normal"},
        "cache": {"latents": "memory"},
        "preview": {"every": 10, "steps": 2},
        "output": str(root / output),
    }
    path = root / f"{output}_{resume}.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_killed_training_ends_in_the_same_bits(tmp_path: Path) -> None:
    stable_diffusion().save_pretrained(tmp_path / "model")
    pictures(tmp_path / "concept", 5, captions=False)
    pictures(tmp_path / "class", 4, captions=False)
    variables = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "mmpeft", "train", str(write_config(tmp_path, "killed"))]
    log = tmp_path / "killed" / "metrics.jsonl"
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        while process.poll() is None and (not log.exists() or '{"step": 7,' not in log.read_text()):
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
    assert main(["train", str(write_config(tmp_path, "killed", "latest"))]) == 0
    assert main(["train", str(write_config(tmp_path, "whole"))]) == 0
    files = [tmp_path / run / "adapter" / "adapter_model.safetensors" for run in ("killed", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert log.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert f'{{"step": {STEPS},' in log.read_text()
    grids = [tmp_path / run / "samples" / f"step_{STEPS}.png" for run in ("killed", "whole")]
    assert grids[0].read_bytes() == grids[1].read_bytes()
