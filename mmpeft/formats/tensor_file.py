"""A safetensors file, of which names, types and shapes are known before anything is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmpeft.settings import nearest

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
Shapes = Mapping[str, tuple[int, ...]]


class TensorFile:
    """The header of a safetensors file; a broken one, a strange name or a type that is no float is a ValueError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = safe_open(path, "pt")  # kept open: what is read later is of the same file
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118  no iterable
            self.shapes: Shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            dtypes = {name: part.get_dtype() for name, part in slices.items()}
        except SafetensorError as error:
            raise ValueError(f"{path}: no complete safetensors file: {error}") from None
        problems = [f"{name!r} is no name of a tensor" for name in dtypes if not NAME.fullmatch(name)]
        problems += [
            f"{name}: type {kind}, not of {list(DTYPES)}" for name, kind in dtypes.items() if kind not in DTYPES
        ]
        refuse(path, problems)
        self._dtypes = [DTYPES[kind] for kind in dtypes.values()]

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds every tensor exactly."""
        return reduce(torch.promote_types, self._dtypes)

    def problems(self, expected: Shapes) -> list[str]:
        """Return what is missing, unexpected or misshapen in the file."""
        own = self.shapes
        found = [f"missing {name}" for name in expected if name not in own]
        found += [f"unexpected {name}{nearest(name, expected.keys() - own)}" for name in own if name not in expected]
        both = [name for name in expected if name in own and own[name] != expected[name]]
        return found + [f"{name}: shape {own[name]}, the model needs {expected[name]}" for name in both]

    def read(self, allow_nan: bool) -> dict[str, Tensor]:
        """Return the tensors; NaN or infinite values are an error that names them all, unless allowed."""
        tensors = {name: self._file.get_tensor(name) for name in self.shapes}
        if not allow_nan:
            bad = [name for name, value in tensors.items() if not value.isfinite().all()]
            refuse(self.path, [f"{name}: NaN or infinite values (allow_nan=True reads them)" for name in bad])
        return tensors


def refuse(path: Path, problems: list[str]) -> None:
    """Raise one ValueError with all problems of what is at a path, if there are any."""
    if problems:
        raise refusal(path, problems)


def refusal(path: Path, problems: list[str]) -> ValueError:
    """Return the error that names all problems."""
    return ValueError("\n  ".join([f"{path} can't be loaded:", *problems]))
