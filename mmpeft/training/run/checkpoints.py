"""Checkpoints: safetensors and JSON, complete or absent, the newest two kept."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mmpeft.files import replaced_file, synchronise, write_text

Groups = dict[str, dict[str, Tensor]]
"""Tensors by name, in groups: ``weights``, ``average``, ``best``, ``optimizer``."""
KEEP = 2
STATE = "state.json"
TENSORS = ("tensors.safetensors", "tensors.again.safetensors")
"""A checkpoint's tensors are in one of these files; saved again, it takes the other one."""


def save_checkpoint(directory: Path, step: int, groups: Groups, state: dict[str, Any]) -> Path:
    """Write ``directory/step_<step>``, perhaps in place of one of that name, then delete all but the newest two.

    Later steps, which a run has that went on from an older checkpoint, are deleted too: they are of another course.
    ``state.json`` is written last, in one atomic step, and names its file of tensors. So a directory without it is no
    checkpoint, and one that is saved again is the old one or the new one at every moment: what is left after a kill
    or a power cut can be resumed.
    """
    path = directory / f"step_{step}"
    try:
        _write(path, groups, state)
    except BaseException:
        _delete_but(directory, checkpoints(directory))
        raise
    _delete_but(directory, [kept for kept in checkpoints(directory) if _step(kept) <= step][-KEEP:])
    return path


def load_checkpoint(path: Path) -> tuple[Groups, dict[str, Any]]:
    """Read what ``save_checkpoint`` wrote."""
    state = _state(path)
    groups: Groups = {}
    for key, tensor in load_file(path / state.pop("tensors", TENSORS[0])).items():
        group, name = key.split(":", 1)
        groups.setdefault(group, {})[name] = tensor
    return groups, state


def checkpoints(directory: Path) -> list[Path]:
    """Return the complete checkpoints of a directory, oldest first."""
    return [path for path in _directories(directory) if (path / STATE).is_file()]


def find_checkpoint(directory: Path, resume: str) -> Path:
    """Return the checkpoint that ``train.resume`` names: the newest one for ``latest``, else a path."""
    if resume != "latest":
        path = Path(resume)
        if not (path / STATE).is_file():
            raise ValueError(f"train.resume: {resume!r} is no checkpoint (it has no {STATE}); use latest, or a path")
        return path
    complete = checkpoints(directory)
    if not complete:
        raise ValueError(
            f"train.resume: 'latest' finds no checkpoint in {str(directory)!r}: start anew with "
            "resume=null, in an output that holds no run"
        )
    return complete[-1]


def _directories(directory: Path) -> list[Path]:
    """Return the directories of checkpoints by their steps, those too whose save or deletion was cut short."""
    return sorted((path for path in directory.glob("step_*") if re.fullmatch(r"step_\d+", path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((path / STATE).read_text(encoding="utf-8"))
    return state


def _tensors_file(path: Path) -> Path | None:
    """Return the file of tensors that the checkpoint here needs, if it is one."""
    return path / _state(path).get("tensors", TENSORS[0]) if (path / STATE).is_file() else None


def _write(path: Path, groups: Groups, state: dict[str, Any]) -> None:
    path.mkdir(parents=True, exist_ok=True)
    synchronise(path.parent)
    before = _tensors_file(path)
    file = path / next(name for name in TENSORS if path / name != before)
    tensors = {f"{group}:{name}": tensor for group, named in groups.items() for name, tensor in named.items()}
    with replaced_file(file) as temporary:
        save_file({key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, temporary)
    write_text(path / STATE, json.dumps({**state, "tensors": file.name}))


def _delete_but(directory: Path, kept: list[Path]) -> None:
    """Delete all but some checkpoints, and what is left of earlier ones; first what makes each a checkpoint."""
    for path in _directories(directory):
        if path not in kept:
            (path / STATE).unlink(missing_ok=True)
            shutil.rmtree(path)
    for path in kept:
        for file in path.iterdir():
            if file not in (path / STATE, _tensors_file(path)):
                file.unlink()
