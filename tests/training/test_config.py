"""The run's configuration: what belongs together is checked together, and no torch is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mmpeft.configuration import as_yaml
from mmpeft.methods import LinearProbe, LoRA
from mmpeft.training.config import ModelConfig, RunConfig, TrainConfig, read_run

RUN: dict[str, Any] = {
    "task": "vision/classify",
    "model": "tiny/vit",
    "adapters": {"main": "lora"},
    "data": {"name": "digits"},
    "train": {"epochs": 1},
    "output": "runs/x",
}


def test_imports_no_torch() -> None:
    code = "import mmpeft.training.config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "neither epochs nor max_steps"),
        ({"epochs": 2, "max_steps": 5}, "epochs: 2 and max_steps: 5 contradict"),
        ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs: 2 must be less than epochs: 2"),
        ({"max_steps": 5, "warmup_steps": 9}, "warmup_steps: 9 must be less than max_steps: 5"),
        ({"epochs": 9, "warmup_epochs": 0.5, "warmup_steps": 9}, "warmup_epochs: 0.5 and warmup_steps: 9: keep one"),
        ({"epochs": 9, "warmup": "constant", "warmup_epochs": 1}, "warmup: constant needs warmup_lr"),
        ({"epochs": 9, "warmup_lr": 1e-5}, "warmup_lr: 1e-05 without a warm-up"),
        ({"epochs": 9, "lr": 0.1, "min_lr": 0.2}, r"min_lr: 0\.2 is above lr: 0\.1"),
        (
            {"epochs": 9, "step_by": "epoch", "warmup_epochs": 1.5},
            "epoch needs a whole number of warmup_epochs",
        ),
        ({"max_steps": 9, "step_by": "epoch"}, "step_by: counts epochs, and max_steps: 9 may end within one"),
        ({"max_steps": 9, "average": {"mean": 3, "std": 1}}, "average: counts epochs, and max_steps: 9"),
        ({"epochs": 9, "ema": 0.9, "average": {"mean": 3, "std": 1}}, r"ema: 0\.9 and average: keep one"),
        ({"epochs": 9, "monitor": None, "early_stopping": 2}, "early_stopping: 2 without a monitor"),
        ({"epochs": True}, "should not be a boolean"),
        ({"epochs": 1, "lr": 0}, "greater than 0"),
        ({"epochs": 1, "ema": 1.0}, "less than 1"),
        ({"epochs": 1, "betas": [0.9]}, "betas.1"),
        ({"epochs": 1, "trackers": ["tensorbord"]}, "did you mean 'tensorboard'"),
        ({"epochs": 1, "precision": "fp8"}, "one of: bf16, fp16, fp32"),
        ({"epochs": 1, "cache": "disc"}, "did you mean 'disk'"),
        ({"epochs": 1, "cache": {"views": 0}}, "greater than 0"),
    ],
)
def test_train_config_refuses(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(values)


def test_length_and_warmup_problems_come_together() -> None:
    with pytest.raises(ValidationError, match=r"contradict.*; warmup_epochs: 9 must be less"):
        TrainConfig(epochs=2, max_steps=5, warmup_epochs=9)


@pytest.mark.parametrize(
    ("specification", "methods"),
    [
        ("lora", (LoRA(),)),
        (LoRA(rank=2), (LoRA(rank=2),)),
        ({"method": "lora", "rank": 2}, (LoRA(rank=2),)),
        ([{"method": "lora", "rank": 2}, "linear_probe"], (LoRA(rank=2), LinearProbe())),
    ],
)
def test_adapters_are_methods(specification: Any, methods: tuple[Any, ...]) -> None:
    config = RunConfig.model_validate(RUN | {"adapters": {"main": specification}})
    assert config.adapters == {"main": methods}
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ({}, "at least 1"),
        ({"main": []}, "at least one method"),
        ({"a.b": "lora"}, "letters, digits"),
        ({"main": {"rank": 4}}, "method"),
        ({"main": [{"method": "lora", "rnk": 4}]}, "did you mean 'rank'"),
        ({"main": ["lora", "ssff"]}, "did you mean 'ssf'"),
        ({"main": 3}, "3"),
    ],
)
def test_adapters_refused(adapters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(RUN | {"adapters": adapters})


def test_a_model_is_a_name_or_a_section() -> None:
    assert RunConfig.model_validate(RUN).model == ModelConfig(name="tiny/vit")
    section = {"name": "tiny/vit", "image_size": 48}
    assert RunConfig.model_validate(RUN | {"model": section}).model == ModelConfig(name="tiny/vit", image_size=48)


def test_read_run_names_the_output_and_reads_back(tmp_path: Path) -> None:
    config = RunConfig.model_validate(RUN | {"output": "runs/digits_lora"})
    path = tmp_path / "other.yaml"
    path.write_text(as_yaml(config))
    assert read_run(path).validate(RunConfig) == config
    path.write_text(as_yaml(config).replace("output: runs/digits_lora\n", ""))
    assert read_run(path).validate(RunConfig).output == Path("runs/other")
