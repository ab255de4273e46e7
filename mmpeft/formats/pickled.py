"""What a pickle may name: numbers, text, plain containers, tensors and arrays. Nothing else has a meaning.

A pickle is a program for a machine with a stack, which calls what it names. Our machine (``unpickler``) does its own
steps: a name that is not in ``KNOWN`` becomes an inert ``Stub``, and calling it, setting its state or filling it does
nothing and keeps nothing. A learning-rate scheduler, an optimizer or a namespace of arguments beside the weights is so
read over, and an attack has nothing to call. What is made grows with the file: nothing is copied again and again, no
memory is taken for a number that the file only claims, and keys are plain, so that their hashes are cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
LARGEST_KEY = 2**60
"""Integers as keys stay below it: greater ones can be chosen to have one hash."""
ARRAYS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class Stub:
    """What stands for anything that is not read; ``origin`` is its name in the file."""

    __slots__ = ("origin",)

    def __init__(self, origin: str) -> None:
        self.origin = origin

    def __repr__(self) -> str:
        return self.origin[:100]


class Content(dict[Any, Any]):
    """An OrderedDict's items, without the attributes that a pickle may give it."""


class ArrayType:
    """A numpy type in the making."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *flags: bool) -> None:
        self.code, self.order = code, "<"

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Take the order of bytes."""
        self.order = state[1]

    @property
    def plain(self) -> np.dtype[Any]:
        """The type; one that holds more than numbers is a ValueError."""
        if self.code not in ARRAYS or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of type {self.code!r}, not of {sorted(ARRAYS)}")
        return np.dtype(self.order + self.code)


class Array:
    """A tensor, or a numpy array in the making, which becomes one; a pickle can't reach the tensor itself."""

    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def set_state(self, state: tuple[Any, ...]) -> None:
        """Take shape, type, order and numbers."""
        _, shape, kind, fortran, data = state
        data = data.encode("latin-1") if isinstance(data, str) else data  # of Python 2
        flat = np.frombuffer(data, kind.plain)
        array = flat.reshape(shape, order="F" if fortran else "C")
        self.value = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


@dataclass(frozen=True)
class Storage:
    """The numbers of some tensors: their type, name in the file and count."""

    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class Callee:
    """A function that a pickle may call."""

    function: Callable[..., Any]


def _array(*shape: Any) -> Array:
    return Array(torch.empty(0))


def _scalar(kind: ArrayType, data: bytes) -> Any:
    return np.frombuffer(data, kind.plain)[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def checked_key(key: Any) -> Any:
    """Return a key; one whose hash could take long (a tuple of tuples) or be chosen is a ValueError."""
    inside = key if isinstance(key, tuple) else (key,)
    for value in inside:
        if isinstance(value, tuple | frozenset) or (isinstance(value, int) and abs(value) > LARGEST_KEY):
            raise ValueError(f"a {type(value).__name__} in a key")
    return key


def _set(values: Iterable[Any] = ()) -> set[Any]:
    return set(map(checked_key, values))


def _ordered(pairs: Iterable[tuple[Any, Any]] = ()) -> Content:
    return Content((checked_key(key), value) for key, value in pairs)


def _first(value: Any, *rest: Any) -> Any:
    return value


DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
KNOWN: dict[str, Any] = {
    **DTYPES,
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
    "_codecs.encode": Callee(_bytes),
    "builtins.set": Callee(_set),
    "collections.OrderedDict": Callee(_ordered),
    "numpy.core.multiarray._reconstruct": Callee(_array),
    "numpy.core.multiarray.scalar": Callee(_scalar),
    "numpy.dtype": Callee(ArrayType),
    "numpy.ndarray": None,
    "torch.Size": Callee(tuple),
    "torch._utils._rebuild_parameter": Callee(_first),
}
"""All that a pickle can name. ``_rebuild_tensor`` and ``_rebuild_tensor_v2`` belong to the file that is read."""
