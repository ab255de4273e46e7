"""What one layer hands to another within a forward pass."""

from __future__ import annotations

from typing import Any

import torch

from mmpeft.kernels.scoped import passing


class Passed:
    """What one layer hands to the next in a forward pass of this thread; a copy of the model starts without it.

    It stays until the thread's next pass: a checkpointed block that is computed again needs it again.
    """

    def __init__(self) -> None:
        self._compiled: Any = None

    @property
    def value(self) -> Any:
        """The value; None before anything was handed on."""
        return self._compiled if torch.compiler.is_compiling() else passing().get(self)

    @value.setter
    def value(self, value: Any) -> None:
        if torch.compiler.is_compiling():
            self._compiled = value
        else:
            passing()[self] = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Passed:
        return Passed()

    def __reduce__(self) -> tuple[type[Passed], tuple[()]]:
        return Passed, ()
