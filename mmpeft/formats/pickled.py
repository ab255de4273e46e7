"""A pickle reader that runs nothing: it knows numbers, text, plain containers, tensors and arrays, and no other name.

A pickle is a program that calls what it names. Here a name that is not in ``KNOWN`` becomes an inert ``Stub``: calling
it, setting its state or filling it does nothing and keeps nothing. A learning-rate scheduler, an optimizer or a
namespace of arguments beside the weights is so read over, and an attack has nothing to call.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

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
ARRAYS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}


class Stub:
    """What stands for anything that is not read; ``origin`` is its name in the file."""

    __slots__ = ()
    origin = ""

    def __new__(cls, *arguments: Any, **options: Any) -> Stub:
        """Return a stub, whatever it is called with."""
        return object.__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def nothing(self, *arguments: Any) -> None:
        """Take what the pickle gives, and forget it."""

    __setstate__ = __setitem__ = append = extend = add = nothing

    def __repr__(self) -> str:
        return self.origin


class Content(dict[Any, Any]):
    """An OrderedDict's items, without the attributes that a pickle may give it."""

    def __setstate__(self, state: object) -> None:
        pass


class ArrayType:
    """A numpy type in the making."""

    __slots__ = ("code", "order")

    def __init__(self, code: str, *flags: bool) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
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

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
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
    """A known function of a pickle, whose state can't be changed by one."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function makes of a pickle's arguments."""
        return self.function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise ValueError("a function has no state")


Read = Callable[[Storage], Tensor]


class Unpickler(pickle.Unpickler):
    """Reads one pickle; ``read`` returns the numbers of a storage, flat."""

    def __init__(self, file: BinaryIO, read: Read) -> None:
        super().__init__(file, encoding="utf-8")
        self.read_storage = read
        self.storages: dict[str, Storage] = {}
        self.tensors: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name of the file stands for; nothing is imported."""
        full = f"{module}.{name}".replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if full.startswith("torch._utils._rebuild_tensor"):
            return Callee(self._tensor)
        return KNOWN[full] if full in KNOWN else type(name, (Stub,), {"origin": full, "__slots__": ()})

    def persistent_load(self, saved: Any) -> Any:
        """Return the storage that a persistent id names."""
        kind, dtype, key, _, count, *_ = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"a persistent object {kind!r} of {dtype!r} is no storage")
        return self.storages.setdefault(str(key), Storage(dtype, str(key), int(count)))

    def _tensor(self, storage: Storage, offset: int, size: Iterable[int], stride: Iterable[int], *rest: Any) -> Array:
        if storage.key not in self.tensors:
            self.tensors[storage.key] = self.read_storage(storage)
        shape = tuple(size)
        if torch.Size(shape).numel() > storage.count:
            raise ValueError(f"a tensor of shape {shape} in a storage of {storage.count} elements")
        return Array(self.tensors[storage.key].as_strided(shape, tuple(stride), offset))


def _array(*shape: Any) -> Array:
    return Array(torch.empty(0))


def _scalar(kind: ArrayType, data: bytes) -> Any:
    return np.frombuffer(data, kind.plain)[0].item()


def _bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _first(value: Any, *rest: Any) -> Any:
    return value


DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
KNOWN: dict[str, Any] = {
    **DTYPES,
    **{f"torch.{name}": dtype for name, dtype in STORAGES.items()},
    "_codecs.encode": Callee(_bytes),
    "builtins.set": Callee(set),
    "collections.OrderedDict": Callee(Content),
    "numpy.core.multiarray._reconstruct": Callee(_array),
    "numpy.core.multiarray.scalar": Callee(_scalar),
    "numpy.dtype": Callee(ArrayType),
    "numpy.ndarray": None,
    "torch.Size": Callee(tuple),
    "torch._utils._rebuild_parameter": Callee(_first),
}
"""All that a pickle can name. ``_rebuild_tensor`` and ``_rebuild_tensor_v2`` belong to the file that is read."""
