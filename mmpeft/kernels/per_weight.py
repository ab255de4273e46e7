"""What is computed once of a frozen weight."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmpeft.kernels.quantized import is_quantized


class PerWeight:
    """A tensor made of a weight, made anew when that is another, has moved or was written to; copies start without.

    Under the compiler, and for a weight that is sharded or stands in for a parameter, it is made each time.
    """

    def __init__(self) -> None:
        self.owner: weakref.ref[Tensor] | None = None
        self.key = (0, 0)
        self.made: Tensor | None = None

    def of(self, weight: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """Return what ``make`` made of the weight."""
        packed = is_quantized(weight)
        if torch.compiler.is_compiling() or not (packed or type(weight) is nn.Parameter):
            return make()
        key = 0 if packed else weight.data_ptr(), weight._version
        if self.made is None or key != self.key or self.owner is None or self.owner() is not weight:
            self.owner, self.key, self.made = weakref.ref(weight), key, make()
        return self.made

    def __deepcopy__(self, memo: dict[int, object]) -> PerWeight:
        return PerWeight()

    def __reduce__(self) -> tuple[type[PerWeight], tuple[()]]:
        return PerWeight, ()
