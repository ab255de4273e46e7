"""Named tensors of safetensors files and of ``torch.save``, whose names may be anything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mmpeft.files import replaced_file
from mmpeft.formats.tensor_file import described, refusal
from mmpeft.formats.torch_file import read_flat


def read_values(path: Path) -> dict[str, Any]:
    """Return all that a file holds, by dotted keys; a pickle is read without running anything in it."""
    check_file(path)
    if path.suffix != ".safetensors":
        values = read_flat(path)
        if "" in values:
            raise refusal(path, [f"{described(values[''])}, expected names and tensors"])
        return values
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open isn't iterable
    except SafetensorError as error:
        raise refusal(path, [f"no complete safetensors file: {error}"]) from None


def check_file(path: Path) -> None:
    """Raise an error for a path without a file to read: nothing, a directory, or a pipe, which never ends."""
    if not path.exists():
        raise FileNotFoundError(f"no file {str(path)!r}")
    if not path.is_file():
        raise refusal(path, [f"a {'directory' if path.is_dir() else 'device or pipe'}, expected a file"])


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text in the header of a safetensors file; other files have none."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def find_file(source: Path, names: Iterable[str]) -> Path:
    """Return a file itself, or the first of these names that a directory has."""
    names = list(names)
    if source.is_file():
        return source
    file = next((source / name for name in names if (source / name).is_file()), None)
    if file is None:
        kind = "holds none of" if source.is_dir() else "is no file, and no directory with one of"
        raise FileNotFoundError(f"{str(source)!r} {kind} {', '.join(names)}")
    return file


def write_tensors(path: Path, tensors: dict[str, Tensor], **metadata: str) -> None:
    """Write a safetensors file, or for another suffix one of ``torch.save``; whole or not at all."""
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(path) as temporary:
        if path.suffix == ".safetensors":
            save_file(contiguous, temporary, metadata={"format": "pt", **metadata})
        else:
            torch.save(contiguous, temporary)


def check_suffix(dest: Path, *suffixes: str) -> None:
    """Raise a ValueError for a file name that doesn't end as its format does."""
    if dest.suffix not in suffixes:
        raise ValueError(f"DEST {str(dest)!r}: must end in {' or '.join(suffixes)}")
