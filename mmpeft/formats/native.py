"""mmpeft's own directory: ``mmpeft.json`` beside safetensors, laid out as HF peft does wherever peft has the method."""

from __future__ import annotations

from pathlib import Path

from mmpeft.formats.hf_peft.peft import read_peft
from mmpeft.formats.hf_peft.peft_config import read_config
from mmpeft.formats.manifest import Manifest
from mmpeft.formats.saved_adapter import SavedAdapter
from mmpeft.formats.storage import (
    MANIFEST,
    read_json,
    validated,
    weights_in,
)
from mmpeft.formats.tensor_file import TensorFile
from mmpeft.methods import parse


def read(directory: Path) -> SavedAdapter:
    """Return what a directory of mmpeft or of HF peft holds."""
    weights = weights_in(directory)
    if not (directory / MANIFEST).is_file():
        return read_peft(directory)
    manifest = validated(directory / MANIFEST, read_json(directory / MANIFEST), Manifest)
    config = read_config(directory) if manifest.layout == "peft" else None
    methods = parse(list(manifest.methods))
    return SavedAdapter(directory, TensorFile(weights), methods, manifest.name, config, manifest)
