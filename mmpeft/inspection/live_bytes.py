"""Counting the bytes of the tensors that are alive, and the most there were at one time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmpeft.kernels.quantized import stored


class LiveBytes(TorchDispatchMode):
    """Within this context, counts the storages that operations make, each once, until the last tensor on it is gone.

    What an operation needs inside itself and gives back before it returns is not seen. Those of ``known`` tensors, and
    views of them, do not count. Fake tensors count with the bytes that real ones would take.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = self.most = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        for part in chain.from_iterable(map(stored, known)):
            self._watch(part.untyped_storage(), 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count what is new in its result."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            for part in stored(tensor) if isinstance(tensor, Tensor) else ():
                storage = part.untyped_storage()
                if id(storage) not in self._seen:
                    self._watch(storage, storage.nbytes())
        return result

    def _watch(self, storage: torch.UntypedStorage, size: int) -> None:
        self._seen[id(storage)] = weakref.ref(storage, partial(self._forget, id(storage), size))
        self.bytes += size
        self.most = max(self.most, self.bytes)

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._seen[key]
        self.bytes -= size
