"""``mmpeft inspect`` and ``merge``: a model, and a model with an adapter in it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import mmpeft
from mmpeft.cli.shipped import new_path
from mmpeft.files import replaced_file
from mmpeft.handle.loading import merge_stages


def inspect(options: Namespace) -> None:
    """Print the anatomy of a model, built on the meta device: no weights, no computation."""
    print(mmpeft.anatomy(mmpeft.load_model(options.model, device="meta")))


def merge(options: Namespace) -> None:
    """Write the merged weights as safetensors, under the model's own keys."""
    from safetensors.torch import save_file

    dest = new_path(options.dest)
    if dest.suffix != ".safetensors":
        raise ValueError(f"DEST {options.dest!r}: must end in .safetensors")
    classes = {} if options.num_classes is None else {"num_classes": options.num_classes}
    model = mmpeft.load_model(options.model, **classes)
    for stage in merge_stages(model, Path(options.adapter)):
        print(f"merged first, for the adapter was made on it: {stage}")
    mmpeft.load(model, options.adapter)
    mmpeft.adapters(model).merge()
    weights = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("mmpeft.")}
    dest.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(dest) as temporary:
        save_file(weights, temporary)
    print(f"{len(weights)} tensors of {options.model} with {options.adapter} merged in: {dest}")
