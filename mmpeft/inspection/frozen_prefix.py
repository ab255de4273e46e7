"""The frozen prefix: the part of a forward pass in front of the first edit, which is a fixed function of the sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmpeft.inspection.outline import Outline, TensorOutline
from mmpeft.inspection.trace import Forward, first, inner_forward, inner_forwards, overridden, with_first

Point = Literal["input", "output", "inner output"]


class NoPrefixError(ValueError):
    """A pass has no frozen prefix; the message is the reason."""


class _Reached(BaseException):
    """Ends a pass at the landing; no error, so that no model's own handler takes it for one."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


@dataclass(frozen=True, eq=False)
class FrozenPrefix:
    """The modules that are skipped when a pass is resumed, and the landing: where the stored activation is put in."""

    path: str
    module: nn.Module
    point: Point
    tensor: TensorOutline
    skipped: tuple[tuple[nn.Module, Outline], ...]
    reads_image: bool
    """Whether the rest of the pass reads the image too (a side network does)."""
    later: frozenset[str]
    """Paths of the modules that are called behind the landing: the prefix does not depend on them."""

    @property
    def place(self) -> str:
        """The landing in words."""
        if self.point == "inner output":
            return f"the output of {self.path}, in front of its edits"
        return f"the {self.point} of {self.path}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is kept of one sample."""
        return self.tensor.sample or ()

    @property
    def sample_bytes(self) -> int:
        """Bytes that are kept of one sample."""
        return torch.empty(self.shape, dtype=self.tensor.dtype, device="meta").nbytes

    @torch.no_grad()
    def compute(self, run: Callable[[], object]) -> Tensor:
        """Return the tensor at the landing, (batch, *shape), in a pass that ends there."""
        forward = self._forward()

        def stop(*args: Any, **kwargs: Any) -> Any:
            raise _Reached(first(args, kwargs) if self.point == "input" else forward(*args, **kwargs))

        try:
            with self._landing(stop):
                run()
        except _Reached as reached:
            return reached.value.detach()
        raise ValueError(f"the pass never came to {self.place}")

    @contextmanager
    def resumed(self, stored: Tensor) -> Iterator[None]:
        """Let a pass of these samples start from what was stored; modules in front hand on NaN in the right shape."""
        forward, reached = self._forward(), False

        def land(*args: Any, **kwargs: Any) -> Any:
            nonlocal reached
            reached = True
            if self.point != "input":
                return stored
            args, kwargs = with_first(stored, args, kwargs)
            return forward(*args, **kwargs)

        def standing_in(outline: Outline) -> Callable[..., Any]:
            return lambda *args, **kwargs: outline.stand_in(len(stored), stored.device)

        with overridden({module: standing_in(outline) for module, outline in self.skipped}), self._landing(land):
            yield
        if not reached:
            raise ValueError(f"the pass never came to {self.place}, where it was to be resumed")

    def _forward(self) -> Forward:
        """What the landing runs; without active edits there is no inner one, and no pass will come there."""
        return inner_forward(self.module) or self.module.forward if self._inner else self.module.forward

    def _landing(self, forward: Forward) -> AbstractContextManager[None]:
        return (inner_forwards if self._inner else overridden)({self.module: forward})

    @property
    def _inner(self) -> bool:
        return self.point == "inner output"
