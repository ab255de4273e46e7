"""Puts the adapters of a configuration, or of a finished run, into a model that was prepared for them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

import mmpeft
from mmpeft.handle.adapters import Adapters
from mmpeft.methods import LinearProbe
from mmpeft.training.config import RunConfig
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.zoo.precision import DTYPES
from mmpeft.zoo.quantization import quantize


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
        quantize(model, how.kind, double=how.double, compute=DTYPES[how.compute], skip=how.skip)
    mmpeft.use_attention(model, config.attention)
    mmpeft.use_memory(model, config.memory)


def checkpoint_blocks(model: Any) -> None:
    """Let a model of transformers compute its blocks again in the backward pass, from the first edit on.

    Transformers would have the words want a gradient, for reentrant checkpointing: then all blocks had a graph.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()
