"""Weights from files, compared with the model before anything is copied."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmpeft.formats.any_file import read_values
from mmpeft.settings import nearest

WRAPPERS = (
    "",
    "state_dict.",
    "model.",
    "module.",
    "state_dict.module.",
    "model.module.",
    "model_ema.",
    "state_dict_ema.",
)
"""What the names of a training's checkpoint have in front of those of the model."""
Shape = tuple[int, ...]


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
        stored = {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        wanted = _compared(model, stored, path, fresh)
        state = {name: tensors.get_tensor(name) for name in wanted}
    model.load_state_dict(state, strict=False)


def load_checkpoint(model: nn.Module, path: Path, *, fresh: Collection[str] = ()) -> None:
    """Copy the tensors of a library's or a training's checkpoint into the model: safetensors, or a file of torch.save.

    Nothing in a pickle is run. Names may have a wrapper in front, such as ``state_dict.module.``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it can't be read, or keys or shapes differ: all differences at once, nothing changed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {str(path)!r}")
    tensors = {name: value for name, value in read_values(path).items() if isinstance(value, Tensor)}
    names = model.state_dict().keys()
    wrapper = max(WRAPPERS, key=lambda front: sum(f"{front}{name}" in tensors for name in names))
    inside = {name.removeprefix(wrapper): value for name, value in tensors.items() if name.startswith(wrapper)}
    wanted = _compared(model, {name: tuple(value.shape) for name, value in inside.items()}, path, fresh)
    model.load_state_dict({name: inside[name] for name in wanted}, strict=False)


def _compared(model: nn.Module, stored: Mapping[str, Shape], path: Path, fresh: Collection[str]) -> dict[str, Shape]:
    """Return names and shapes of what the model needs; a difference to what is stored is a ValueError with all."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in fresh}
    problems = [f"no {name}{nearest(name, stored)}" for name in sorted(wanted.keys() - stored)]
    problems += [f"unknown {name}" for name in sorted(stored.keys() - wanted.keys() - set(fresh))]
    problems += [
        f"{name} is {stored[name]}, not {shape}" for name, shape in wanted.items() if stored.get(name, shape) != shape
    ]
    if problems:
        more = f"; and {len(problems) - 100} more" if len(problems) > 100 else ""
        raise ValueError(f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:100])}{more}")
    return wanted
