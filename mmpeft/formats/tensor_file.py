"""A safetensors file, of which names, types and shapes are known before anything is read."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmpeft.settings import nearest

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
MOST, LONGEST = 20, 1_000
"""Problems of a kind in an error, and letters of each."""
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
        return reduce(torch.promote_types, self._dtypes or [torch.float32])

    def problems(self, expected: Shapes) -> list[str]:
        """Return what is missing, unexpected or misshapen in the file."""
        shapes = self.shapes
        problems = [f"missing {name}" for name in expected if name not in shapes]
        surplus, open_names = [name for name in shapes if name not in expected], expected.keys() - shapes
        problems += [
            f"unexpected {name}{nearest(name, open_names) if i < MOST else ''}" for i, name in enumerate(surplus)
        ]
        both = [name for name in expected if name in shapes and shapes[name] != expected[name]]
        return problems + [f"{name}: shape {shapes[name]}, the model needs {expected[name]}" for name in both]

    def read(self, allow_nan: bool) -> dict[str, Tensor]:
        """Return the tensors; NaN or infinite values are an error that names them all, unless allowed."""
        tensors = {name: self._file.get_tensor(name) for name in self.shapes}
        if not allow_nan:
            bad = [name for name, value in tensors.items() if not is_finite(value)]
            refuse(self.path, [f"{name}: NaN or infinite values (allow_nan=True reads them)" for name in bad])
        return tensors


def is_finite(value: Tensor) -> bool:
    """Whether no number is NaN or infinite: then their sum isn't either, but for one too large, which needs a look."""
    return bool(value.sum(dtype=torch.float64).isfinite()) or bool(value.isfinite().all())


def refuse(path: Path, problems: list[str]) -> None:
    """Raise one ValueError with all problems of what is at a path, if there are any."""
    if problems:
        raise refusal(path, problems)


def refusal(path: Path, problems: list[str]) -> ValueError:
    """Return the error that names the problems: all of them, or of very many the first of each kind."""
    counts: Counter[str] = Counter()
    said = []
    for problem in problems:
        kind = problem.partition(" ")[0]
        kind = kind if kind in ("missing", "unexpected") else "others"
        counts[kind] += 1
        if counts[kind] <= MOST:
            said.append(problem if len(problem) <= LONGEST else f"{problem[:LONGEST]} ...")
    said += [f"and {count - MOST:,} more: {kind}" for kind, count in counts.items() if count > MOST]
    return ValueError("\n  ".join([f"{path} can't be loaded:", *said]))


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Let every error about a stranger's values name the file that has them."""
    try:
        yield
    except ValidationError as error:
        raise refusal(path, described_problems(error)) from None
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise refusal(path, [str(error)]) from None


def described_problems(error: ValidationError) -> list[str]:
    """Return a line for each of pydantic's errors."""
    lines = [(".".join(map(str, line["loc"])), line["msg"], described(line["input"])) for line in error.errors()]
    return [f"{key[:LONGEST]}: {message[:LONGEST]}, got {value}" for key, message, value in lines]


def described(value: object) -> str:
    """Return what a stranger's value is in few words, however large or nested it is."""
    return reprlib.repr(value)
