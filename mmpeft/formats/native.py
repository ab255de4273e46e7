"""mmpeft's own directory: ``mmpeft.json`` beside safetensors, laid out as HF peft does wherever peft has the method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmpeft.formats.loading import Source, load_source
from mmpeft.formats.manifest import Manifest
from mmpeft.formats.peft import read_peft
from mmpeft.formats.peft_config import AnyConfig, read_config
from mmpeft.formats.peft_plan import InexpressibleError, lay_out
from mmpeft.formats.storage import (
    CONFIG,
    MANIFEST,
    WEIGHTS,
    read_json,
    replaced_directory,
    validated,
    weights_in,
    write_json,
)
from mmpeft.formats.tensor_file import TensorFile
from mmpeft.injection.adapters import Adapters
from mmpeft.methods import parse


def save(handle: Adapters, directory: Path, name: str) -> Path:
    """Write one adapter; a directory of an adapter that is there is replaced whole or not at all. Returns the path.

    Where HF peft knows the method, ``peft.PeftModel.from_pretrained(base, directory)`` loads it as it is.
    """
    tensors, config = _packed(handle, name)
    layout: Literal["native", "peft"] = "peft" if config else "native"
    manifest = Manifest.of(handle, name, layout)
    with replaced_directory(directory) as partial:
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
        if config:
            write_json(partial / CONFIG, config.model_dump(mode="json") | {"inference_mode": True})
    return directory


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


def read(directory: Path) -> Source:
    """Return what a directory of mmpeft or of HF peft holds."""
    weights = weights_in(directory)
    if not (directory / MANIFEST).is_file():
        return read_peft(directory)
    manifest = validated(directory / MANIFEST, read_json(directory / MANIFEST), Manifest)
    config = read_config(directory) if manifest.layout == "peft" else None
    methods = parse(list(manifest.methods))
    return Source(directory, TensorFile(weights), methods, manifest.name, config, manifest)


def _packed(handle: Adapters, name: str) -> tuple[dict[str, Tensor], AnyConfig | None]:
    state = {key: value.detach().contiguous() for key, value in handle.kept(name).items()}
    if list(handle.modules) != [""]:
        return state, None
    try:
        layout, config = lay_out(handle.parts(name)[""], handle.modules[""])
    except InexpressibleError:
        return state, None
    return layout.pack(state), config
