"""mmpeft's own directory: ``mmpeft.json`` beside safetensors, laid out as HF peft does wherever peft has the method."""

from __future__ import annotations

from pathlib import Path

from mmpeft.formats.hf_peft.peft import read_peft
from mmpeft.formats.hf_peft.peft_config import read_config
from mmpeft.formats.manifest import Manifest
from mmpeft.formats.saved_adapter import SavedAdapter
from mmpeft.formats.storage import MANIFEST, read_json, read_steadily, validated, weights_in
from mmpeft.formats.tensor_file import TensorFile, refusing
from mmpeft.methods import Method, parse
from mmpeft.methods.base import UnknownMethodError
from mmpeft.plugins import METHODS, unavailable


def read(directory: Path) -> SavedAdapter:
    """Return what a directory of mmpeft or of HF peft holds."""
    return read_steadily(directory, _read)


def _read(directory: Path) -> SavedAdapter:
    weights = weights_in(directory)
    if not (directory / MANIFEST).is_file():
        return read_peft(directory)
    manifest = validated(directory / MANIFEST, read_json(directory / MANIFEST), Manifest)
    config = read_config(directory) if manifest.layout == "peft" else None
    return SavedAdapter(directory, TensorFile(weights), _methods(directory, manifest), manifest.name, config, manifest)


def _methods(directory: Path, manifest: Manifest) -> list[Method]:
    with refusing(directory / MANIFEST):
        try:
            return parse(list(manifest.methods))
        except UnknownMethodError as error:
            package = manifest.packages.get(error.name)
            needed = f"; it was saved with {package}, which {unavailable(METHODS, error.name)}" if package else ""
            raise ValueError(f"{error}{needed}") from None
