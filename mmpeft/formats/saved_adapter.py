"""From a checked file to an adapter: everything is compared before the model is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from mmpeft.anatomies.headed import backbone_of
from mmpeft.anatomies.sites import WeightSite
from mmpeft.formats.hf_peft.peft_config import AnyConfig
from mmpeft.formats.hf_peft.peft_layout import TensorLayout
from mmpeft.formats.hf_peft.peft_plan import lay_out
from mmpeft.formats.hf_peft.peft_prefix import lay_out_prefix
from mmpeft.formats.hf_peft.peft_prompts import PrefixConfig
from mmpeft.formats.manifest import Manifest
from mmpeft.formats.tensor_file import MOST, Shapes, TensorFile, refusal, refuse
from mmpeft.injection.planning import Anatomies, sketch
from mmpeft.methods import Method

UNREAL = OverflowError, RuntimeError, TypeError
"""What torch raises for sizes that no tensor can have, which a file may ask for."""


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter on disk; ``config`` is there when the tensors are laid out as HF peft does."""

    directory: Path
    file: TensorFile
    methods: list[Method]
    name: str = "main"
    config: AnyConfig | None = None
    manifest: Manifest | None = None


def read_tensors(
    modules: Mapping[str, nn.Module],
    anatomies: Anatomies,
    source: SavedAdapter,
    notes: list[str],
    *,
    allow_nan: bool = False,
) -> dict[str, Tensor]:
    """Return the adapter's tensors by our keys, compared with what a model needs; ``notes`` join any error.

    ``modules`` and ``anatomies`` are those of the model, by label.
    """
    layout, expected = _expected(source, modules, anatomies, notes)
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
    source: SavedAdapter, modules: Mapping[str, nn.Module], anatomies: Anatomies, notes: list[str]
) -> tuple[TensorLayout | None, Shapes]:
    """Return the shapes that this model needs, and their layout when it is peft's."""
    try:
        sketches = sketch(anatomies, source.methods)
        if source.config is None:
            states = {label: part.state_dict().items() for label, part in sketches.items()}
            named = ((f"{label}.{key}", value) for label, state in states.items() for key, value in state)
            return None, {key.lstrip("."): tuple(value.shape) for key, value in named}
        if list(modules) != [""]:
            raise ValueError(f"it was saved from a single module, not from a pipeline of {', '.join(modules)}")
        if isinstance(source.config, PrefixConfig):
            layout: TensorLayout = lay_out_prefix(sketches[""], anatomies[""])
        else:
            layout, _ = lay_out(sketches[""], modules[""])
        return layout, layout.shapes
    except (ValueError, *UNREAL) as error:
        raise refusal(source.directory, [str(error), *_strangers(source, anatomies), *notes]) from None


def _strangers(source: SavedAdapter, anatomies: Anatomies) -> list[str]:
    known = {site.host_path for anatomy in anatomies.values() for site in anatomy.sites(WeightSite)}
    config = source.config
    paths = [] if config is None or isinstance(config, PrefixConfig) else config.paths(source.file.shapes)
    said = "has tensors, and is no layer to adapt in this model"
    strangers = [path for path in paths if path not in known]
    return [f"{path} {said}{_renamed(path, known) if i < MOST else ''}" for i, path in enumerate(strangers)]


def _renamed(path: str, known: set[str]) -> str:
    """Say under which other name the model has a layer: libraries put towers into other modules from time to time."""
    parts = path.split(".")
    ends = ".".join(["", *parts[-4:]])
    apart = {other: len({*other.split(".")} ^ {*parts}) for other in known if f".{other}".endswith(ends)}
    nearest = [other for other, distance in apart.items() if distance == min(apart.values())]
    return f" (is it {nearest[0]!r} in this version of the library? Then rename it)" if len(nearest) == 1 else ""
