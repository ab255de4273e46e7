"""From an adapter in a model to a directory of mmpeft's own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from safetensors.torch import save as to_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from mmpeft.edits.weights import Weight
from mmpeft.formats.hf_peft.peft_config import AnyConfig
from mmpeft.formats.hf_peft.peft_plan import InexpressibleError, check_experts, lay_out
from mmpeft.formats.manifest import Base, Manifest
from mmpeft.formats.stages import Stage, stages_of
from mmpeft.formats.storage import CONFIG, MANIFEST, WEIGHTS, replaced_directory, write_json
from mmpeft.injection.tree import Adapter
from mmpeft.methods.base import packages_of

METADATA = {"format": "pt"}


def save(parts: Mapping[str, Adapter], modules: Mapping[str, nn.Module], directory: Path, name: str) -> Path:
    """Write one adapter; a directory of an adapter that is there is replaced whole or not at all. Returns the path.

    ``parts`` are the adapter's parts in the ``modules`` of the same labels. Where HF peft knows the method,
    ``peft.PeftModel.from_pretrained(base, directory)`` loads it as it is.
    """
    tensors, config = _packed(parts, modules)
    layout: Literal["native", "peft"] = "peft" if config else "native"
    methods = next(iter(parts.values())).methods
    manifest = Manifest(
        name=name,
        layout=layout,
        methods=tuple(method.kept().specification() for method in methods),
        packages=packages_of(methods),
        stages=stages_of(modules),
        base={label: Base.of(modules[label]) for label in parts},
    )
    with replaced_directory(directory) as partial:
        save_file(tensors, partial / WEIGHTS, metadata=METADATA)
        write_json(partial / MANIFEST, manifest.model_dump(mode="json"))
        if config:
            write_json(partial / CONFIG, config.model_dump(mode="json") | {"inference_mode": True})
    for part in parts.values():
        part.directory = directory
    return directory


def stage_of(parts: Mapping[str, Adapter], modules: Mapping[str, nn.Module], name: str, weight: Weight) -> Stage:
    """Describe an adapter that is about to be merged for good: by its directory, if that holds it as it is now."""
    directory = next(iter(parts.values())).directory
    trained = any(value.requires_grad for part in parts.values() for value in part.parameters())
    saved = None if directory is None else Stage.of(directory, weight)
    if saved is not None and not trained:
        return saved
    digest = hashlib.sha256(to_bytes(_packed(parts, modules)[0], metadata=METADATA)).hexdigest()
    if saved is not None and saved.sha256 == digest:
        return saved
    return Stage.of(f"{name} (not saved)", weight).model_copy(update={"sha256": digest})


def kept_tensors(parts: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Return the tensors of one adapter that are saved, by key; what only served its training is left out."""
    places = ((label, edit, key) for label, part in parts.items() for _, edit, key in part.places)
    kept = ((f"{label}.{key}".lstrip("."), edit.kept()) for label, edit, key in places)
    return {f"{path}.{name}".lstrip("."): value for path, tensors in kept for name, value in tensors.items()}


def _packed(
    parts: Mapping[str, Adapter], modules: Mapping[str, nn.Module]
) -> tuple[dict[str, Tensor], AnyConfig | None]:
    state = {key: value.detach().contiguous() for key, value in kept_tensors(parts).items()}
    if list(modules) != [""]:
        return state, None
    try:
        layout, config = lay_out(parts[""], modules[""])
        check_experts(layout, modules[""])
    except InexpressibleError:
        return state, None
    return layout.pack(state), config
