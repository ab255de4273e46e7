"""``mmpeft inspect``, ``merge``, ``export`` and ``import``: models and adapters on disk."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import mmpeft
from mmpeft import formats
from mmpeft.training.files import replaced_file


def inspect(options: Namespace) -> None:
    """Print the anatomy of a model, built on the meta device: no weights, no computation."""
    print(mmpeft.anatomy(mmpeft.load_model(options.model, device="meta")))


def merge(options: Namespace) -> None:
    """Write the merged weights as safetensors, under the model's own keys."""
    from safetensors.torch import save_file

    dest = _new(options.dest)
    if dest.suffix != ".safetensors":
        raise ValueError(f"DEST {options.dest!r}: must end in .safetensors")
    classes = {} if options.num_classes is None else {"num_classes": options.num_classes}
    model = mmpeft.load_model(options.model, **classes)
    mmpeft.load(model, options.adapter)
    mmpeft.adapters(model).merge()
    weights = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("mmpeft.")}
    dest.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(dest) as temporary:
        save_file(weights, temporary)
    print(f"{len(weights)} tensors of {options.model} with {options.adapter} merged in: {dest}")


def export_adapter(options: Namespace) -> None:
    """Write one of our adapters in another library's format."""
    formats.export(Path(options.adapter), _new(options.dest), options.format)
    print(f"{options.adapter} as {options.format}: {options.dest}")


def import_adapter(options: Namespace) -> None:
    """Write another library's adapter as one of ours."""
    formats.convert(Path(options.source), _new(options.dest), options.format)
    print(f"{options.source} as mmpeft: {options.dest}")


def _new(dest: str) -> Path:
    if Path(dest).exists():
        raise FileExistsError(f"DEST {dest!r} exists and is not overwritten: choose another name")
    return Path(dest)
