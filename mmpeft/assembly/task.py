"""What every task script does: graft the configured adapters, load those of a finished run, run as a program."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import nn

import mmpeft
from mmpeft.data import DataSplits, ImageSplit
from mmpeft.data.samples import Sample
from mmpeft.handle.adapters import Adapters
from mmpeft.methods import LinearProbe
from mmpeft.training.config import RunConfig, read_run
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.zoo.quantization import COMPUTE, quantize

Config = TypeVar("Config", bound=RunConfig)


def add_adapters(model: nn.Module, config: RunConfig, *, head: bool | Collection[str]) -> Adapters:
    """Graft the adapters of a configuration and activate them; ``head`` are those that train the task head too, or all.

    The model is prepared as the configuration says: its weights quantised, its attention's kernel and the memory level
    chosen.
    """
    _prepare(model, config)
    for name, methods in config.adapters.items():
        heads = head if isinstance(head, bool) else name in head
        beside = [LinearProbe()] if heads and not any(method.trains_head for method in methods) else []
        mmpeft.adapt(model, [*methods, *beside], name=name)
    adapters = mmpeft.adapters(model)
    adapters.activate(*config.adapters, trainable=True)
    return adapters


def load_adapters(model: nn.Module, config: RunConfig) -> None:
    """Load and activate the adapters that the run directory of a finished run holds, in a model prepared as for it."""
    _prepare(model, config)
    for name, path in RunDirectory(config.output).adapters(list(config.adapters)).items():
        mmpeft.load(model, path, name=name)
    mmpeft.adapters(model).activate(*config.adapters)


def _prepare(model: nn.Module, config: RunConfig) -> None:
    for path in config.model.merged:
        mmpeft.load(model, path, name="merged").merge_and_unload()
    how = config.model.quantize
    if how is not None:
        quantize(model, how.kind, double=how.double, compute=COMPUTE[how.compute], skip=how.skip)
    mmpeft.use_attention(model, config.attention)
    mmpeft.use_memory(model, config.memory)


def checkpoint_blocks(model: Any) -> None:
    """Let a model of transformers compute its blocks again in the backward pass, from the first edit on.

    Transformers would have the words want a gradient, for reentrant checkpointing: then all blocks had a graph.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()


def test_sample(split: ImageSplit, index: int) -> Sample:
    """Return a sample of the test split, or raise a ValueError if there is no such one."""
    if not 0 <= index < len(split):
        raise ValueError(f"index: {index} is not among the {len(split)} test samples")
    return split.samples[index]


def probabilities(model: nn.Module, data: DataSplits, index: int) -> dict[str, float]:
    """Return the probability of each class for a test sample."""
    with torch.no_grad():
        shares = model.eval()(data.test[index]["image"][None]).softmax(-1)[0]
    return dict(zip(data.classes, shares.tolist(), strict=True))


def main(run: Callable[[Config], Any], kind: type[Config], arguments: Sequence[str]) -> None:
    """Train as the command line says: a configuration file and ``key=value`` overrides."""
    path, *overrides = arguments
    metrics = run(read_run(Path(path), overrides).validate(kind))
    PartialState().print(metrics)
