"""HF peft's directories from mmpeft's and back, as files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from mmpeft.formats.hf_peft.peft import read_peft
from mmpeft.formats.hf_peft.peft_plan import check_experts, lay_out
from mmpeft.formats.hf_peft.peft_prefix import lay_out_prefix
from mmpeft.formats.manifest import Manifest
from mmpeft.formats.saved_adapter import SavedAdapter, read_tensors
from mmpeft.formats.storage import CONFIG, MANIFEST, WEIGHTS, replaced_directory, validated, weights_in, write_json
from mmpeft.injection.planning import anatomies_of, sketch
from mmpeft.methods.prefix_tuning import PrefixTuning
from mmpeft.settings import Settings


def export(directory: Path, dest: Path, base: Any = None) -> None:
    """Write an adapter's directory as HF peft has it; of a prefix only the ``base`` can tell where it stands."""
    weights_in(directory)
    if not (directory / CONFIG).is_file():
        export_prefix(directory, dest, base)
        return
    with replaced_directory(dest) as partial:
        _copy(directory, partial)


def export_prefix(directory: Path, dest: Path, base: Any) -> None:
    """Write a prefix as HF peft puts it into the cache of a model."""
    from mmpeft.formats.native import read

    source = read(directory)
    if not any(isinstance(method, PrefixTuning) for method in source.methods):
        raise ValueError(f"{directory}: HF peft has no counterpart of this adapter: {_reason(source, base)}")
    if not isinstance(base, nn.Module):
        raise ValueError("base: where a prefix stands, only the model can tell: give the module, or --base MODEL")
    anatomies = anatomies_of(base)
    tensors = read_tensors({"": base}, anatomies, source, [])
    try:
        layout = lay_out_prefix(sketch(anatomies, source.methods)[""], anatomies[""])
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from None
    assert layout.config is not None
    with replaced_directory(dest) as partial:
        save_file(layout.pack(tensors), partial / WEIGHTS, metadata={"format": "pt"})
        write_json(partial / CONFIG, layout.config.model_dump(mode="json") | {"inference_mode": True})


def _reason(source: SavedAdapter, base: Any) -> str:
    if not isinstance(base, nn.Module):
        return "give the model (--base MODEL) to be told why"
    try:
        layout, _ = lay_out(sketch(anatomies_of(base), source.methods)[""], base)
        check_experts(layout, base)
    except ValueError as error:
        return str(error)
    return "peft would compute something else"


def convert(source: Path, dest: Path, options: Mapping[str, Any], base: Any = None) -> list[str]:
    """Write HF peft's directory as one of mmpeft's, which HF peft still loads; it says all there is to know."""
    validated("format peft", dict(options), Settings)
    read = read_peft(source)
    methods = tuple(method.specification() for method in read.methods)
    manifest = Manifest(name=read.name, layout="peft", methods=methods, base={})
    with replaced_directory(dest) as partial:
        _copy(source, partial)
        write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
    return []


def _copy(directory: Path, dest: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(directory / name, dest / name)
