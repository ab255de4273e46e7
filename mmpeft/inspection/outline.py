"""The outline of a module's output, from which a stand-in for any batch is made without computing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


@dataclass(frozen=True)
class TensorOutline:
    """Type and dimensions of a float tensor: of each its size, or (size, batch size) where it grows with the batch."""

    dtype: torch.dtype
    sizes: tuple[int | tuple[int, int], ...]

    @classmethod
    def of(cls, big: Tensor, small: Tensor, batches: tuple[int, int]) -> TensorOutline | None:
        """Read a tensor's outline from its instances for two sizes of the batch; None where there is no rule."""
        if big.dtype != small.dtype or not big.is_floating_point() or big.ndim != small.ndim:
            return None
        sizes: list[int | tuple[int, int]] = []
        for a, b in zip(big.shape, small.shape, strict=True):
            if a != b and a * batches[1] != b * batches[0]:
                return None
            sizes.append(a if a == b else (a, batches[0]))
        return cls(big.dtype, tuple(sizes))

    @property
    def sample(self) -> tuple[int, ...] | None:
        """The shape of one sample, where the first dimension is the batch and no other grows with it."""
        first, *rest = self.sizes or (0,)
        fixed = tuple(size for size in rest if isinstance(size, int))
        return fixed if isinstance(first, tuple) and first[0] == first[1] and len(fixed) == len(rest) else None

    def stand_in(self, batch: int, device: torch.device) -> Tensor:
        """Return NaN in the tensor's shape, in the memory of one number."""
        sizes = [size if isinstance(size, int) else size[0] * batch // size[1] for size in self.sizes]
        return torch.full((), float("nan"), dtype=self.dtype, device=device).expand(sizes)


@dataclass(frozen=True)
class Outline:
    """A structure of tensors (a tuple, or a library's output class) with the outline of each."""

    leaves: tuple[Any, ...]
    structure: TreeSpec

    @classmethod
    def of(cls, big: Any, small: Any, batches: tuple[int, int]) -> Outline | None:
        """Read an output's outline from its instances for two sizes of the batch; None where a part has none."""
        (big_leaves, structure), (small_leaves, other) = tree_flatten(big), tree_flatten(small)
        if structure != other:
            return None
        leaves: list[Any] = []
        for a, b in zip(big_leaves, small_leaves, strict=True):
            leaf = TensorOutline.of(a, b, batches) if isinstance(a, Tensor) else a
            if isinstance(a, Tensor) and leaf is None:
                return None
            leaves.append(leaf)
        return cls(tuple(leaves), structure)

    def stand_in(self, batch: int, device: torch.device) -> Any:
        """Return the structure with NaN in every tensor."""
        made = [leaf.stand_in(batch, device) if isinstance(leaf, TensorOutline) else leaf for leaf in self.leaves]
        return tree_unflatten(made, self.structure)


def tensors(value: Any) -> list[Tensor]:
    """Return all tensors in a structure."""
    return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]
