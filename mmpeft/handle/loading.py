"""From a directory to an adapter in a model: everything is compared before the model is touched."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmpeft.formats.hf_peft.peft import read_peft
from mmpeft.formats.native import read
from mmpeft.formats.saved_adapter import SavedAdapter, read_tensors
from mmpeft.formats.stages import Stage, check_stages
from mmpeft.handle.adapters import Adapters
from mmpeft.handle.adapting import inject
from mmpeft.injection.pipelines import modules_of
from mmpeft.injection.planning import anatomies_of


def load_source(
    model: nn.Module | Mapping[str, nn.Module],
    source: SavedAdapter,
    name: str | None,
    *,
    trainable: bool,
    allow_nan: bool,
    dtype: torch.dtype | None,
) -> Adapters:
    """Graft an adapter into a model; on any problem raise one ValueError that names them all and change nothing."""
    modules, manifest = modules_of(model), source.manifest
    if manifest:
        check_stages(source.directory, manifest.stages, modules)
    anatomies = anatomies_of(model)
    notes = manifest.differences(modules, anatomies) if manifest else []
    tensors = read_tensors(modules, anatomies, source, notes, allow_nan=allow_nan)
    wide = torch.promote_types(source.file.dtype, torch.float32) if trainable else source.file.dtype
    name = name or source.name
    if manifest:
        manifest.warn(source.directory, notes)
    handle = inject(model, source.methods, name, dtype or wide, anatomies)
    handle.load_state_dict(tensors, name)
    handle.activate(name, trainable=trainable)
    for part in handle.parts(name).values():
        part.directory = source.directory
    return handle


def load(
    model: nn.Module | Mapping[str, nn.Module],
    directory: str | Path,
    name: str | None = None,
    *,
    trainable: bool = False,
    allow_nan: bool = False,
    dtype: torch.dtype | None = None,
) -> Adapters:
    """Graft a saved adapter into a model and make it the active one; directories that HF peft wrote load too.

    ``name`` is the one it was saved under when not given ("main" from peft). The weights keep the precision of the
    file, at least fp32 when ``trainable``, or take ``dtype``. Only safetensors and JSON are read. A wrong model,
    missing or misshapen tensors and NaN (unless ``allow_nan``) are one ValueError that names them all and leaves the
    model untouched.
    """
    options: dict[str, Any] = {"trainable": trainable, "allow_nan": allow_nan, "dtype": dtype}
    return load_source(model, read(Path(directory)), name, **options)


def merge_stages(model: nn.Module | Mapping[str, nn.Module], directory: Path) -> tuple[Stage, ...]:
    """Merge into a model what the adapter in a directory was made on, and return it.

    Raises:
        ValueError: If one of these adapters is not where it was, or is another one by now; it is told before any merge.
    """
    manifest = read(directory).manifest
    stages = manifest.stages if manifest else ()
    for stage in stages:
        if not stage.same(Stage.of(stage.path, stage.weights)):
            raise ValueError(
                f"{directory} was made on a base with {stage} merged in, and this adapter is not there now"
            )
    for stage in stages:
        handle = load(model, stage.path, "merged")
        handle.activate("merged", weights=[stage.weights])
        handle.merge_and_unload()
    return stages


def load_peft(
    model: nn.Module | Mapping[str, nn.Module],
    directory: str | Path,
    name: str = "main",
    *,
    trainable: bool = False,
    allow_nan: bool = False,
    dtype: torch.dtype | None = None,
) -> Adapters:
    """Load a directory as HF peft would, even when mmpeft wrote it; otherwise like ``mmpeft.load``."""
    source = read_peft(Path(directory))
    return load_source(model, source, name, trainable=trainable, allow_nan=allow_nan, dtype=dtype)
