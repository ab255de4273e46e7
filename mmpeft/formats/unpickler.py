"""The machine that reads a pickle: a stack, a memo, and a step for each kind of opcode."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from mmpeft.formats.pickled import KNOWN, Array, ArrayType, Callee, Content, Storage, Stub, checked_key

Read = Callable[[Storage], Tensor]
"""Returns the numbers of a storage, flat."""
COPIES = 16
"""How much may be copied for each byte of a pickle, and how many times a storage may be handed out whole."""
SPARE = 2**20
TEXT_OF_PYTHON_2 = ("STRING", "BINSTRING", "SHORT_BINSTRING")
VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}
"""Opcodes whose argument is a value."""
NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}


class Readable(Protocol):
    """A file, or memory that is mapped from one."""

    def read(self, size: int = ..., /) -> bytes:
        """Return the next bytes."""

    def readline(self) -> bytes:
        """Return the bytes to the end of a line."""

    def tell(self) -> int:
        """Return where the next byte stands."""


class Unpickler:
    """Reads one pickle; nothing in it is run, and what it makes is no larger than the file allows."""

    def __init__(self, file: Readable, read: Read) -> None:
        self.file, self.read_storage = file, read
        self.storages: dict[str, Storage] = {}
        self.tensors: dict[str, Tensor] = {}
        self._taken: dict[str, int] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._position = self._copied = 0

    def load(self) -> Any:
        """Return the object that the pickle describes; a broken one is an error of some kind."""
        begin = self.file.tell()
        for opcode, argument, position in pickletools.genops(self.file):  # type: ignore[arg-type]
            self._position = (position or 0) - begin
            name = opcode.name
            if name in VALUES:
                self._stack.append(argument)
            elif name in NEW:
                self._stack.append(NEW[name]())
            elif name in TEXT_OF_PYTHON_2:
                self._stack.append(str(argument).encode("latin-1").decode("utf-8"))
            elif name == "STOP":
                return self._stack.pop()
            else:
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise ValueError(f"opcode {name} is not read")
                step(argument)
        raise ValueError("it ends in the middle")

    def _skip(self, argument: Any) -> None:
        pass

    _proto = _frame = _skip

    def _mark(self, argument: Any) -> None:
        self._marks.append(len(self._stack))

    def _marked(self) -> list[Any]:
        """Take what lies above the last mark."""
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _pop(self, argument: Any) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _pop_mark(self, argument: Any) -> None:
        self._marked()

    def _dup(self, argument: Any) -> None:
        self._stack.append(self._stack[-1])

    def _get(self, argument: Any) -> None:
        self._stack.append(self._memo[argument])

    def _put(self, argument: Any) -> None:
        self._memo[argument] = self._stack[-1]

    _binget = _long_binget = _get
    _binput = _long_binput = _put

    def _memoize(self, argument: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _tuple(self, argument: Any) -> None:
        self._stack.append(tuple(self._marked()))

    def _last(self, count: int) -> None:
        if len(self._stack) < count:
            raise ValueError("it takes more from its stack than there is")
        items = tuple(self._stack[-count:])
        del self._stack[-count:]
        self._stack.append(items)

    def _tuple1(self, argument: Any) -> None:
        self._last(1)

    def _tuple2(self, argument: Any) -> None:
        self._last(2)

    def _tuple3(self, argument: Any) -> None:
        self._last(3)

    def _list(self, argument: Any) -> None:
        self._stack.append(self._marked())

    def _dict(self, argument: Any) -> None:
        items = self._marked()
        self._stack.append({})
        self._fill(items)

    def _frozenset(self, argument: Any) -> None:
        self._stack.append(frozenset(map(checked_key, self._marked())))

    def _additems(self, argument: Any) -> None:
        items, target = self._marked(), self._stack[-1]
        if not isinstance(target, Stub):
            target.update(map(checked_key, items))

    def _append(self, argument: Any) -> None:
        self._extend([self._stack.pop()])

    def _appends(self, argument: Any) -> None:
        self._extend(self._marked())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, Stub):
            target.extend(items)

    def _setitem(self, argument: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._fill([key, value])

    def _setitems(self, argument: Any) -> None:
        self._fill(self._marked())

    def _fill(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Stub):
            return
        if not isinstance(target, dict):
            raise ValueError(f"items for a {type(target).__name__}")
        target.update(zip(map(checked_key, items[::2]), items[1::2], strict=True))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._find(module, name))

    def _stack_global(self, argument: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(self._find(module, name))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(self._call(self._find(module, name), tuple(self._marked())))

    def _obj(self, argument: Any) -> None:
        function, *arguments = self._marked()
        self._stack.append(self._call(function, tuple(arguments)))

    def _reduce(self, argument: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    _newobj = _reduce

    def _newobj_ex(self, argument: Any) -> None:
        self._stack.pop()
        self._reduce(argument)

    def _build(self, argument: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Array | ArrayType):
            self._spend(state)
            target.set_state(state)
        elif not isinstance(target, Stub | Content):
            raise ValueError(f"a state for a {type(target).__name__}")

    def _binpersid(self, argument: Any) -> None:
        kind, dtype, key, _, count, *_ = self._stack.pop()
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError("a persistent object that is no storage")
        self._stack.append(self.storages.setdefault(str(key), Storage(dtype, str(key), int(count))))

    def _find(self, module: str, name: str) -> Any:
        """Return what a name of the file stands for; nothing is imported."""
        full = f"{module}.{name}".replace("numpy._core", "numpy.core").replace("__builtin__", "builtins")
        if full.startswith("torch._utils._rebuild_tensor"):
            return Callee(self._tensor)
        return KNOWN[full] if full in KNOWN else Stub(full)

    def _call(self, function: Any, arguments: Any) -> Any:
        if isinstance(function, Stub):
            return Stub(function.origin)
        if not isinstance(function, Callee) or not isinstance(arguments, tuple):
            raise ValueError(f"a call of a {type(function).__name__}")
        self._spend(arguments)
        return function.function(*arguments)

    def _spend(self, arguments: Iterable[Any]) -> None:
        """Count what a call may copy: small pickles must not make much by calling again and again."""
        self._copied += sum(len(a) for a in arguments if isinstance(a, str | bytes | bytearray | list | tuple | set))
        if self._copied > COPIES * self._position + SPARE:
            raise ValueError("it makes far more than it holds")

    def _tensor(self, storage: Storage, offset: int, size: Iterable[int], stride: Iterable[int], *rest: Any) -> Array:
        if storage.key not in self.tensors:
            self.tensors[storage.key] = self.read_storage(storage)
        shape = tuple(size)
        count = torch.Size(shape).numel()
        if count > storage.count:
            raise ValueError(f"a tensor of shape {shape} in a storage of {storage.count} elements")
        taken = self._taken[storage.key] = self._taken.get(storage.key, 0) + count
        if taken > COPIES * storage.count + SPARE:
            raise ValueError(f"storage {storage.key[:50]!r} is many tensors at once")
        return Array(self.tensors[storage.key].as_strided(shape, tuple(stride), offset))
