"""Checkpoints: safetensors and JSON, complete or absent, the newest two kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mmpeft.files import new_directory

Groups = dict[str, dict[str, Tensor]]
"""Tensors by name, in groups: ``weights``, ``average``, ``best``, ``optimizer``."""
KEEP = 2


def save_checkpoint(directory: Path, step: int, groups: Groups, state: dict[str, Any]) -> Path:
    """Write ``directory/step_<step>``, in place of one of that name, then delete all but the newest two."""
    path = directory / f"step_{step}"
    shutil.rmtree(path, ignore_errors=True)
    tensors = {f"{group}:{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    with new_directory(path) as temporary:
        save_file(
            {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()},
            temporary / "tensors.safetensors",
        )
        (temporary / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for old in checkpoints(directory)[:-KEEP]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Read what ``save_checkpoint`` wrote."""
    groups: Groups = {}
    for key, tensor in load_file(path / "tensors.safetensors").items():
        group, name = key.split(":", 1)
        groups.setdefault(group, {})[name] = tensor
    return groups, json.loads((path / "state.json").read_text(encoding="utf-8"))


def checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of a directory, oldest first."""
    return sorted(directory.glob("step_*"), key=lambda path: int(path.name.removeprefix("step_")))


def find_checkpoint(directory: Path, resume: str) -> Path:
    """Return the checkpoint that ``train.resume`` names: the newest one for ``latest``, else a path."""
    if resume != "latest":
        path = Path(resume)
        if not (path / "state.json").is_file():
            raise ValueError(f"train.resume: {resume!r} is no checkpoint (it has no state.json); use latest, or a path")
        return path
    found = checkpoints(directory)
    if not found:
        raise ValueError(f"train.resume: 'latest' finds no checkpoint in {str(directory)!r}: start with resume=null")
    return found[-1]
