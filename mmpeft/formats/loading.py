"""From a checked file to an adapter: everything is compared before the model is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmpeft.formats.manifest import Manifest
from mmpeft.formats.peft_config import AnyConfig
from mmpeft.formats.peft_layout import Layout
from mmpeft.formats.peft_plan import lay_out
from mmpeft.formats.peft_prefix import lay_out_prefix
from mmpeft.formats.peft_prompts import PrefixConfig
from mmpeft.formats.tensor_file import Shapes, TensorFile, refusal, refuse
from mmpeft.heads.base import backbone_of
from mmpeft.injection.adapters import Adapters, adapt
from mmpeft.injection.anatomy import anatomy
from mmpeft.injection.planning import modules_of, sketch
from mmpeft.injection.sites import WeightSite
from mmpeft.methods import Method


@dataclass(frozen=True)
class Source:
    """An adapter on disk; ``config`` is there when the tensors are laid out as HF peft does."""

    directory: Path
    file: TensorFile
    methods: list[Method]
    name: str = "main"
    config: AnyConfig | None = None
    manifest: Manifest | None = None


def load_source(
    model: nn.Module | Mapping[str, nn.Module],
    source: Source,
    name: str | None,
    *,
    trainable: bool,
    allow_nan: bool,
    dtype: torch.dtype | None,
) -> Adapters:
    """Graft an adapter into a model; on any problem raise one ValueError that names them all and change nothing."""
    notes = source.manifest.differences(modules_of(model)) if source.manifest else []
    tensors = read_tensors(model, source, notes, allow_nan=allow_nan)
    wide = torch.promote_types(source.file.dtype, torch.float32) if trainable else source.file.dtype
    name = name or source.name
    handle = adapt(model, source.methods, name, dtype=dtype or wide)
    handle.load_state_dict(tensors, name)
    handle.activate(name, trainable=trainable)
    if source.manifest:
        source.manifest.warn(source.directory, notes)
    return handle


def read_tensors(
    model: nn.Module | Mapping[str, nn.Module], source: Source, notes: list[str], *, allow_nan: bool = False
) -> dict[str, Tensor]:
    """Return the adapter's tensors by our keys, compared with what this model needs; ``notes`` join any error."""
    modules = modules_of(model)
    layout, expected = _expected(source, model, notes)
    problems = source.file.problems(expected)
    if layout and source.config:
        problems += layout.disagreements(source.config, backbone_of(modules[""]))
    if any(parameter.is_meta for module in modules.values() for parameter in module.parameters()):
        problems.append("the model is on the meta device: it has no weights")
    refuse(source.directory, problems and problems + notes)
    tensors = source.file.read(allow_nan)
    if layout:
        refuse(source.directory, layout.changed(tensors))
        tensors = layout.unpack(tensors)
    return tensors


def _expected(
    source: Source, model: nn.Module | Mapping[str, nn.Module], notes: list[str]
) -> tuple[Layout | None, Shapes]:
    """Return the shapes that this model needs, and their layout when it is peft's."""
    modules = modules_of(model)
    try:
        sketches = sketch(model, source.methods)
        if source.config is None:
            states = ((label, key, value) for label, own in sketches.items() for key, value in own.state_dict().items())
            return None, {f"{label}.{key}" if label else key: tuple(value.shape) for label, key, value in states}
        if list(modules) != [""]:
            raise ValueError(f"it was saved from a single module, not from a pipeline of {', '.join(modules)}")
        if isinstance(source.config, PrefixConfig):
            layout: Layout = lay_out_prefix(sketches[""], modules[""])
        else:
            layout, _ = lay_out(sketches[""], modules[""])
        return layout, layout.shapes
    except ValueError as error:
        raise refusal(source.directory, [str(error), *_strangers(source, modules), *notes]) from None


def _strangers(source: Source, modules: Mapping[str, nn.Module]) -> list[str]:
    known = {site.host_path for module in modules.values() for site in anatomy(module).sites(WeightSite)}
    config = source.config
    paths = [] if config is None or isinstance(config, PrefixConfig) else config.paths(source.file.shapes)
    return [f"{path} has tensors, and is no layer to adapt in this model" for path in paths if path not in known]
