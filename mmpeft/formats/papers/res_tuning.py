"""Res-Tuning-Bypass of ModelScope's swift: an adapter directory, or its weights file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from safetensors.torch import load_file

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import ResTuningBypass
from mmpeft.settings import Settings

FILES = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
PREFIX = re.compile(r"^(.*\.)?restuning_[^.]+\.")
LAYERS = {"down": "ln1", "up": "ln2"}


class Options(Settings):
    """What the file does not hold."""

    weight: float = 1.0
    """the x of a training with adapter_weight 'scalar_x' is not in the file; without one it is 1"""
    groups: int | None = Field(default=None, ge=1)
    """the head of tuners of the kind res_group_adapter (4 where the training did not say)"""


def read(source: Path, options: Options) -> Imported:
    """Return the lateral and vertical tuners of every block, added up as swift does, each with its weight."""
    ledger = Ledger(source, {PREFIX.sub("", key): value for key, value in _values(source).items()})
    bottleneck, inner = ledger.shape(r"bypass_blocks\.\d+\.lateral_tuner\.tuner\.ln1\.weight", 2)
    width = inner * (options.groups or 1)
    shapes = {"down": (bottleneck, inner), "up": (inner, bottleneck)}
    weight = _weight(ledger, width, options)
    for i in range(ledger.count(r"bypass_blocks\.(\d+)\..*")):
        for path in ("lateral", "vertical"):
            for layer, shape in shapes.items():
                ours = f"blocks.{i}.res_tuning_bypass.{path}.{layer}"
                theirs = f"bypass_blocks.{i}.{path}_tuner.tuner.{LAYERS[layer]}"
                ledger.enter(f"{ours}.weight", f"{theirs}.weight", shape)
                ledger.enter(f"{ours}.bias", f"{theirs}.bias", shape[:1])
            tuner, scaling = f"blocks.{i}.res_tuning_bypass.{path}", f"bypass_blocks.{i}.{path}_tuner.tuner.scaling"
            if weight == "gate":
                ledger.enter(f"{tuner}.gate.weight", f"{scaling}.weight", (1, width))
                ledger.enter(f"{tuner}.gate.bias", f"{scaling}.bias", (1,))
            elif isinstance(weight, str):
                ledger.enter(f"{tuner}.scale", scaling, (width if weight == "channels" else 1,))
    head = ledger.head()
    method = ResTuningBypass(bottleneck=bottleneck, groups=options.groups, gated=False, weight=weight)
    return Imported([method, *head], ledger.close(), facts=() if isinstance(weight, str) else ("weight",))


def _weight(ledger: Ledger, width: int, options: Options) -> float | Literal["gate", "learned", "channels"]:
    """Return which weight swift's ``scaling`` of the first tuner is."""
    scaling = "bypass_blocks.0.lateral_tuner.tuner.scaling"
    if f"{scaling}.weight" in ledger.values:
        return "gate"
    if scaling not in ledger.values:
        return options.weight
    return "channels" if ledger.shape(re.escape(scaling), 1) == (width,) else "learned"


def _values(source: Path) -> dict[str, Any]:
    if source.is_dir():
        present = [source / name for name in FILES if (source / name).is_file()]
        if not present:
            raise ValueError(f"{source} holds none of {', '.join(FILES)}")
        source = present[0]
    return load_file(source) if source.suffix == ".safetensors" else read_flat(source)


FORMAT = Foreign("res_tuning", r"bypass_blocks\.\d+\.lateral_tuner", read, Options)
convert = FORMAT.convert
