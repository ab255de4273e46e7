"""Logits of all positions that are only computed if somebody looks: a cross entropy of them needs a few rows at a time.

A language model multiplies its last hidden states by the output layer, and makes a loss of that: for n tokens and a
vocabulary of V these are n V numbers, several times over, which is most of the memory of a step. Within
`kernels.recompute.recomputing` the output layer makes `DeferredLogits` in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpeft.kernels.plain import cast, is_plain
from mmpeft.kernels.private_names import without_function_modes, without_storage, without_subclass_functions
from mmpeft.kernels.token_scores import SMALL_BYTES, frozen_scores, recomputed_scores

Function = Callable[..., Any]

_FACTS = ("shape", "dtype", "device", "requires_grad", "ndim", "layout", "is_cuda")
_ASKED: set[Any] = {
    *(getattr(Tensor, name).__get__ for name in _FACTS),
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__,
}  # fmt: skip
"""What is known without the numbers."""
_BY_NUMBER: set[Function] = {
    torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.div, Tensor.div, Tensor.__truediv__,
}  # fmt: skip
"""With a Python number: how models scale their logits, and soft caps."""
_BY_ELEMENT: set[Function] = {Tensor.float, torch.tanh, Tensor.tanh}
_DEFAULTS = {"weight": None, "size_average": None, "reduce": None, "label_smoothing": 0.0}
"""The options of a cross entropy that have to be torch's own."""
_PAST_TORCH = (
    "logits that are not computed yet (memory: lean or leanest, with labels) were handed to something that isn't a "
    "function of torch, such as an autograd function; give it logits.clone(), or use memory: standard"
)
_IN_PLACE = {"__setitem__", *(f"__i{name}__" for name in ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"])}


class DeferredLogits(Tensor):
    """``steps(hidden weight^T + bias)``, of shape (..., vocabulary), not computed yet.

    What picks rows picks them of ``hidden``, what changes each element by itself is one more step, and a cross
    entropy is computed a few rows at a time. Every other function gets the numbers, with their graph: they are
    computed once.
    """

    hidden: Tensor
    layer: tuple[Tensor, Tensor | None]
    steps: tuple[Function, ...]
    numbers: Tensor | None
    copied: bool
    """Whether others or a loss were made of these, or these of others."""

    @staticmethod
    def __new__(
        cls, hidden: Tensor, layer: tuple[Tensor, Tensor | None], steps: tuple[Function, ...] = ()
    ) -> DeferredLogits:
        """Make them of ``hidden`` (..., width), which is in the precision to compute in."""
        like = _stepped(steps, torch.empty(0, dtype=hidden.dtype, device=hidden.device))
        trained = hidden.requires_grad or any(part is not None and part.requires_grad for part in layer)
        shape = (*hidden.shape[:-1], len(layer[0]))
        new: DeferredLogits = without_storage(cls, shape, like, requires_grad=trained)
        new.hidden, new.layer, new.steps, new.numbers, new.copied = hidden, layer, steps, None, False
        if trained:
            with without_subclass_functions():
                new.register_hook(_no_gradient)
        return new

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch with the logits among its arguments."""
        kwargs = kwargs or {}
        if func in _ASKED:
            return super().__torch_function__(func, types, args, kwargs)
        logits = args[0] if args else None
        if isinstance(logits, DeferredLogits) and logits.numbers is None:
            with without_subclass_functions():
                new = logits._put_off(func, args[1:], kwargs)
            if new is not None:
                return new
            if _writes(func) and logits.copied:
                raise ValueError(
                    f"{func.__name__} writes into logits that a loss was made of; under memory: lean and leanest they "
                    "don't exist then: write into a clone(), or use memory: standard"
                )
        return func(*_computed(args), **_computed(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub has a plain function here
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Refuse what reaches the numbers past torch's functions."""
        raise ValueError(f"{func}: {_PAST_TORCH}")

    def computed(self) -> Tensor:
        """Return the logits, with their graph."""
        if self.numbers is None:
            with torch.enable_grad():
                self.numbers = self._of(self.hidden)
        return self.numbers

    def _of(self, hidden: Tensor) -> Tensor:
        weight, bias = (None if part is None else part.to(hidden.dtype) for part in self.layer)
        assert weight is not None
        with without_function_modes(), torch.autocast(hidden.device.type, enabled=False):
            return _stepped(self.steps, F.linear(hidden, weight, bias))

    def _put_off(self, func: Function, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return the function's result without the logits, None where it needs them."""
        if func is F.cross_entropy:
            return self._cross_entropy(*args, **kwargs) if len(args) == 1 else None
        hidden, step = self.hidden, None
        if kwargs or not torch.is_grad_enabled():  # an autograd function computes without a graph, and has its own
            return None
        if not args and (func is Tensor.contiguous or (func is Tensor.float and self.dtype == torch.float32)):
            return self
        if func in _BY_ELEMENT and not args:
            step = func
        elif func in _BY_NUMBER and len(args) == 1 and type(args[0]) in (int, float):
            step = partial(_with_number, func, args[0])
        elif func in (Tensor.view, Tensor.reshape) and (sizes := _sizes(args)) and sizes[-1] == len(self.layer[0]):
            hidden = hidden.reshape(*sizes[:-1], hidden.shape[-1])
        elif func is Tensor.__getitem__ and _keeps_last(args[0], hidden.ndim):
            hidden = hidden[args[0]]
        else:
            return None
        new = DeferredLogits(hidden, self.layer, self.steps if step is None else (*self.steps, step))
        self.copied, new.copied = True, step is None
        return new

    def _cross_entropy(
        self, target: Tensor, ignore_index: int = -100, reduction: str = "mean", **options: Any
    ) -> Tensor | None:
        plain = all(name in _DEFAULTS and value == _DEFAULTS[name] for name, value in options.items())
        if not plain or self.hidden.ndim != 2 or target.ndim != 1 or target.is_floating_point() or not is_plain(target):
            return None
        self.copied = True
        counted = target != ignore_index
        losses = torch.where(counted, -self._scores(torch.where(counted, target, 0)), 0)
        if reduction != "none":
            losses = losses.sum() / (counted.sum() if reduction == "mean" else 1)
        return losses.to(self.dtype)

    def _scores(self, tokens: Tensor) -> Tensor:
        weight, bias = self.layer
        frozen = not any(part is not None and part.requires_grad for part in self.layer)
        if frozen and all(step is Tensor.float for step in self.steps):
            return frozen_scores(self.hidden, weight, bias, tokens)[0]
        return recomputed_scores(self._of, self.hidden, tokens, len(weight))[0]


def deferred(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> DeferredLogits | None:
    """Return the output of a linear layer put off; None where it is small, or nothing has a gradient."""
    trained = hidden.requires_grad or weight.requires_grad
    large = 4 * len(weight) * (hidden.numel() // hidden.shape[-1]) > SMALL_BYTES
    if not (trained and large and is_plain(hidden) and is_plain(weight)):
        return None
    return DeferredLogits(cast(hidden), (weight, bias))


def _no_gradient(gradient: Tensor) -> Tensor:
    """Refuse a gradient to logits without a graph: an autograd function read them."""
    raise ValueError(f"a gradient of shape {tuple(gradient.shape)}: {_PAST_TORCH}")


def _stepped(steps: Sequence[Function], logits: Tensor) -> Tensor:
    for step in steps:
        logits = step(logits)
    return logits


def _with_number(func: Function, number: float, logits: Tensor) -> Tensor:
    changed: Tensor = func(logits, number)
    return changed


def _sizes(args: Sequence[Any]) -> Sequence[int]:
    sizes = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
    return sizes if all(isinstance(size, int) for size in sizes) else ()


def _keeps_last(index: Any, dimensions: int) -> bool:
    """Whether an index leaves the last dimension as it is."""
    parts = index if isinstance(index, tuple) else (index,)
    if not parts or not all(part is ... or isinstance(part, slice | int | Tensor) for part in parts):
        return False
    last = parts[-1]
    if isinstance(last, slice) and last == slice(None):
        return True
    masks = [part.ndim for part in parts if isinstance(part, Tensor) and part.dtype == torch.bool]
    taken = sum(masks) + sum(part is not ... for part in parts) - len(masks)
    return taken < dimensions and all(part is not ... for part in parts[:-1])


def _writes(func: Function) -> bool:
    """Whether a function changes its first argument in place."""
    name: str = func.__name__
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def _computed(value: Any) -> Any:
    """Return arguments with the logits' numbers in the place of those not computed yet."""
    if isinstance(value, DeferredLogits):
        return value.computed()
    if isinstance(value, tuple | list):
        return type(value)(map(_computed, value))
    return {name: _computed(item) for name, item in value.items()} if type(value) is dict else value
