"""Weights from safetensors files, compared with the model before anything is read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import nn

from mmpeft.settings import nearest


def load_weights(model: nn.Module, path: Path, *, fresh: Collection[str] = ()) -> None:
    """Copy the file's tensors into the model, in the model's own dtype.

    Args:
        model: The model to fill.
        path: A ``.safetensors`` file; nothing else is read.
        fresh: Parameters that keep their initialisation, whatever the file says.

    Raises:
        ValueError: If the file isn't safetensors, or keys or shapes differ: all differences at once, nothing changed.
    """
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}") from error
    with file as tensors:
        wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in fresh}
        stored = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        problems = [f"no {name}{nearest(name, stored)}" for name in sorted(wanted.keys() - stored)]
        problems += [f"unknown {name}" for name in sorted(stored.keys() - wanted.keys() - set(fresh))]
        problems += [
            f"{name} is {stored[name]}, not {shape}"
            for name, shape in wanted.items()
            if stored.get(name, shape) != shape
        ]
        if problems:
            raise ValueError(f"{path} does not fit {type(model).__name__}: {'; '.join(problems)}")
        state = {name: tensors.get_tensor(name) for name in wanted}
    model.load_state_dict(state, strict=False)
