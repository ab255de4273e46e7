"""Res-Tuning-Bypass of ModelScope's swift: an adapter directory, or its weights file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import ResTuningBypass
from mmpeft.settings import Settings

FILES = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_model.bin")
PREFIX = re.compile(r"^(.*\.)?restuning_[^.]+\.")
LAYERS = {"down": "ln1", "up": "ln2"}


def read(source: Path, options: Settings) -> Imported:
    """Return the lateral and vertical tuners of every block, added up without a gate as swift does."""
    ledger = Ledger(source, {PREFIX.sub("", key): value for key, value in _values(source).items()})
    bottleneck, width = ledger.shape(r"bypass_blocks\.\d+\.lateral_tuner\.tuner\.ln1\.weight", 2)
    shapes = {"down": (bottleneck, width), "up": (width, bottleneck)}
    for i in range(ledger.count(r"bypass_blocks\.(\d+)\..*")):
        for path in ("lateral", "vertical"):
            for layer, shape in shapes.items():
                ours = f"blocks.{i}.res_tuning_bypass.{path}.{layer}"
                theirs = f"bypass_blocks.{i}.{path}_tuner.tuner.{LAYERS[layer]}"
                ledger.enter(f"{ours}.weight", f"{theirs}.weight", shape)
                ledger.enter(f"{ours}.bias", f"{theirs}.bias", shape[:1])
    head = ledger.head()
    return Imported([ResTuningBypass(bottleneck=bottleneck, gated=False), *head], ledger.close())


def _values(source: Path) -> dict[str, Any]:
    if source.is_dir():
        present = [source / name for name in FILES if (source / name).is_file()]
        if not present:
            raise ValueError(f"{source} holds none of {', '.join(FILES)}")
        source = present[0]
    return load_file(source) if source.suffix == ".safetensors" else read_flat(source)


FORMAT = Foreign("res_tuning", r"bypass_blocks\.\d+\.lateral_tuner", read)
convert = FORMAT.convert
