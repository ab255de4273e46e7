"""Under fake tensors, really compute integer and boolean ones (ids, masks, positions): models branch on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from mmpeft.kernels.plain import is_real

PICKS = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_unsafe_index", "aten::_index_put_impl_")


class WholeNumbers(TorchDispatchMode):
    """Under fake tensors, really computes operations on real tensors alone, and those that create integers.

    Models branch on such numbers: is there padding, does one text follow another in a row, which positions count?
    ``weights`` are real tensors whose operations stay fake, such as packed weights of 4 bits.
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.weights = {id(storage): storage for storage in (weight.untyped_storage() for weight in weights)}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute the operation, or leave it to the mode of fake tensors."""
        kwargs = kwargs or {}
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if all(map(self._has_numbers, read)) if read else _makes_whole_numbers(func, args, kwargs):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func.name().partition(".")[0] in PICKS:  # type: ignore[attr-defined]
            args = (args[0], _places(args[1]), *args[2:])
        return func(*args, **kwargs)

    def _has_numbers(self, tensor: Tensor) -> bool:
        return is_real(tensor) and id(tensor.untyped_storage()) not in self.weights


def _makes_whole_numbers(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operation without tensors to read makes integers or booleans."""
    dtype: torch.dtype | None = kwargs.get("dtype")
    if dtype is not None:
        return not (dtype.is_floating_point or dtype.is_complex)
    name = func.name().partition(".")[0]
    numbers = args if name == "aten::arange" else args[1:2] if name == "aten::full" else ()
    return name == "aten::randint" or (bool(numbers) and all(isinstance(number, int) for number in numbers))


def _places(indices: Iterable[Tensor | None]) -> list[Tensor | None]:
    """Return indices with the places of each mask's true ones instead of the mask: how many there are is known then."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and is_real(index):
            with _disable_current_modes():
                places += index.nonzero().unbind(1)
        else:
            places.append(index)
    return places
