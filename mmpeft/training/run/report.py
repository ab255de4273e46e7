"""What a finished run leaves beside its adapter: scores, environment, curves and a model card."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from mmpeft.configuration import as_yaml
from mmpeft.files import write_text
from mmpeft.methods.base import packages_of
from mmpeft.training import memory
from mmpeft.training.config import Monitor, RunConfig
from mmpeft.training.run.curves import draw_curves
from mmpeft.training.run.model_card import model_card
from mmpeft.training.trainer import Result, Trainer

PACKAGES = ("mmpeft", "torch", "torchvision", "timm", "transformers", "accelerate", "safetensors", "numpy")


def train_and_report(
    trainer: Trainer,
    config: RunConfig,
    loading: str,
    *,
    frozen: bool = False,
    tune: Callable[[], None] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Train, evaluate the best adapter on validation and test, write the run directory, and return its metrics.

    ``loading`` is the Python that makes ``model``, for the model card. With ``frozen`` the model without its adapters
    is tested too: where it can do the task by itself, that is what they are to improve. ``tune`` is called with the
    best adapter in the model, and what it changes there is kept. ``notes`` are what is worth saying of the data.
    """
    with trainer.alone():
        metrics = _train(trainer, config, frozen=frozen, tune=tune)
        metrics |= {"notes": list(notes)} if notes else {}
        if trainer.accelerator.is_main_process:
            directory = trainer.directory
            directory.write_json("metrics.json", metrics)
            draw_curves(directory.records(), directory.path / "curves.png")
            write_text(directory.path / "README.md", model_card(_settled(config), metrics, loading))
        trainer.accelerator.wait_for_everyone()
    return metrics


def _train(trainer: Trainer, config: RunConfig, *, frozen: bool, tune: Callable[[], None] | None) -> dict[str, Any]:
    def describe() -> None:
        if trainer.accelerator.is_main_process:
            write_text(trainer.directory.path / "config.yaml", as_yaml(_settled(config)))
            trainer.directory.write_json("environment.json", environment(trainer))

    result = trainer.fit(describe)
    if tune is not None:
        tune()
        trainer.store.keep_best()
    validation = {"validation": trainer.evaluate("val")} if len(trainer.data.val) else {}
    scores = {**validation, "test": trainer.evaluate("test")}
    if frozen:
        with trainer.adapters.off():
            scores["frozen"] = trainer.evaluate("test")
    return {**summary(config, result), **_counts(trainer), "prefix_cache": trainer.prefix_cache, **scores}


def _settled(config: RunConfig) -> RunConfig:
    """Return the configuration that the run directory keeps: of a whole run, not of going on with one."""
    return config.model_copy(update={"train": config.train.model_copy(update={"resume": None})})


def summary(config: RunConfig, result: Result) -> dict[str, Any]:
    """Return the cost of a run, and how its weights were chosen."""
    return {
        "task": config.task,
        "model": config.model.name,
        "seconds": round(result.seconds, 2),
        "peak_memory_bytes": result.peak_memory_bytes,
        "peak_memory": memory.kind(),
        "steps": result.steps,
        "epochs": result.epochs,
        "selected": f"step {result.best_step}, {_reason(config.train.monitor)}",
    }


def _reason(monitor: Monitor | None) -> str:
    if monitor is None:
        return "the last one, whatever its scores"
    return f"for its {monitor.metric} on the validation split ({monitor.mode})"


def _counts(trainer: Trainer) -> dict[str, int]:
    report = trainer.adapters.report()
    return {"trainable_parameters": report.trainable, "total_parameters": report.total}


def environment(trainer: Trainer) -> dict[str, Any]:
    """Return what the numbers of a run depend on beside its configuration."""
    device = trainer.accelerator.device
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed for name in PACKAGES if (installed := _version(name))},
        "methods": packages_of(method for name in trainer.adapters.names for method in trainer.adapters.methods(name)),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "processes": trainer.accelerator.num_processes,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
