"""CLIP-LoRA's ``lora_weights.pt``: nested by layer and projection, the text tower's layers first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.papers.clip_layout import LAYOUTS, Library
from mmpeft.formats.tensor_file import refuse
from mmpeft.formats.torch_file import read_flat
from mmpeft.methods import CLIPLoRA, Method
from mmpeft.settings import Settings, nearest

PROJECTIONS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "proj": "out"}
PARTS = {
    "all": (0, 1),
    "half-bottom": (0, 1 / 2),
    "half-up": (1 / 2, 1),
    "bottom": (0, 1 / 3),
    "mid": (1 / 3, 2 / 3),
    "up": (2 / 3, 1),
}
"""The positions as shares of a tower's depth; ``top``, ``top1`` to ``top3`` are its last blocks."""


class Options(Settings):
    """What the file does not hold."""

    model: Library = "open_clip"
    """which library's CLIP will load the adapter: open_clip, open_clip_custom_text or transformers"""
    text_layers: int = Field(default=12, ge=1)
    """blocks of the text tower, 12 in OpenAI's models up to ViT-L"""
    vision_layers: int = Field(default=12, ge=1)
    """blocks of the vision tower, 12 in ViT-B, 24 in ViT-L"""


def read(source: Path, options: Options) -> Imported:
    """Return one method per tower, scaled by alpha / sqrt(r)."""
    values = read_flat(source)
    facts = {key: values.pop(f"metadata.{key}", None) for key in ("r", "alpha", "encoder", "params", "position")}
    ledger = Ledger(source, values)
    ledger.shape(r"weights\.layer_\d+\.\w+\.w_lora_A", 2)
    refuse(source, _problems(facts))
    layers = _layers(facts, options)
    count = ledger.count(r"weights\.layer_(\d+)\..*")
    if count != len(layers):
        depths = f"text_layers={options.text_layers} and vision_layers={options.vision_layers}"
        at = f"encoder {facts['encoder']!r} at position {facts['position']!r}"
        refuse(source, [f"it holds {count} layers, and {depths} make {len(layers)} for {at}"])
    names = {theirs: name for theirs, name in PROJECTIONS.items() if rf"weights\.layer_\d+\.{theirs}\..*" in ledger}
    widths = {tower: _width(ledger, layers, tower) for tower, _ in layers}
    for number, (tower, index) in enumerate(layers):
        for theirs, name in names.items():
            ours = LAYOUTS[options.model].project(tower, index, name)
            for letter, shape in (("A", (facts["r"], widths[tower])), ("B", (widths[tower], facts["r"]))):
                ledger.enter(
                    f"{ours}.clip_lora.lora_{letter}", f"weights.layer_{number}.{theirs}.w_lora_{letter}", shape
                )
    methods = _methods(facts, layers, tuple(f"attn.{name}" for name in names.values()))
    return Imported(methods, ledger.close())


def _problems(facts: Mapping[str, Any]) -> list[str]:
    problems = [f"metadata: {key} is missing" for key, value in facts.items() if value is None and key != "params"]
    positions = [*PARTS, "top", "top1", "top2", "top3"]
    for key, known in (("encoder", ["text", "vision", "both"]), ("position", positions)):
        if facts[key] not in (*known, None):
            problems.append(f"metadata.{key}: {facts[key]!r}{nearest(str(facts[key]), known)}")
    return problems


def _layers(facts: Mapping[str, Any], options: Options) -> list[tuple[str, int]]:
    """Return tower and block of layer_0, layer_1, ... in order."""
    towers = ("text", "vision") if facts["encoder"] == "both" else (facts["encoder"],)
    depths = {"text": options.text_layers, "vision": options.vision_layers}
    return [(tower, index) for tower in towers for index in _blocks(facts["position"], depths[tower])]


def _blocks(position: str, depth: int) -> range:
    if position.startswith("top"):
        return range(depth - int(position.removeprefix("top") or 1), depth)
    low, high = PARTS[position]
    return range(round(low * depth), round(high * depth))


def _width(ledger: Ledger, layers: list[tuple[str, int]], tower: str) -> int:
    numbers = "|".join(str(number) for number, (name, _) in enumerate(layers) if name == tower)
    return ledger.shape(rf"weights\.layer_({numbers})\.\w+\.w_lora_A", 2)[1]


def _methods(facts: Mapping[str, Any], layers: list[tuple[str, int]], targets: tuple[str, ...]) -> list[Method]:
    chosen: dict[str, list[int]] = {}
    for tower, index in layers:
        chosen.setdefault(tower, []).append(index)
    common: dict[str, Any] = {"rank": facts["r"], "alpha": facts["alpha"], "targets": targets}
    return [CLIPLoRA(towers=t, layers=tuple(numbers), **common) for t, numbers in chosen.items()]


FORMAT = Foreign("clip_lora", r"w_lora_A$", read, Options)
convert = FORMAT.convert
