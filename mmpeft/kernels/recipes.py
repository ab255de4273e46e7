"""Tensors that are not kept but made again: what is kept in their place, and functions that are computed twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.kernels.private_names import storage_number

Function = Callable[..., Any]
Hooks = tuple[Function, Function]
Geometry = tuple[torch.Size, tuple[int, ...], int | torch.SymInt]


class KeptTensor:
    """A tensor that is kept, by whatever hooks are around ours; it must not be changed in place before it is used.

    ``leaves`` are the storages that this takes, with their sizes: none for a parameter, which is there anyway.
    """

    def __init__(self, tensor: Tensor) -> None:
        parameter = isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)
        self.version, self.tensor = tensor._version, tensor if parameter else tensor.detach()
        self.leaves: dict[int, int] = {} if parameter else {storage_of(tensor): tensor.numel()}
        self.unpack: Function | None = None

    def want(self, hooks: Hooks | None) -> KeptTensor:
        """Hand the tensor over to the hooks around ours, if there are any."""
        if hooks is not None and self.unpack is None and self.leaves:
            self.unpack, self.tensor = hooks[1], hooks[0](self.tensor)
        return self

    def value(self) -> Tensor:
        """Return the tensor."""
        if self.unpack is not None:
            tensor: Tensor = self.unpack(self.tensor)
            return tensor
        if self.tensor._version != self.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"{self.tensor.dtype} of shape {tuple(self.tensor.shape)} is at version {self.tensor._version}, "
                f"expected {self.version}"
            )
        return self.tensor


class Recipe:
    """How a tensor is made again. ``wanted`` counts its consumers to come: as long as there are some, it is held."""

    leaves: dict[int, int]

    def __init__(self, y: Tensor, call: RecordedCall, linear: bool) -> None:
        self.call, self.linear, self.geometry = call, linear, _geometry(y)
        self.leaves = {storage: size for part in call.parts for storage, size in part.leaves.items()}
        self.wanted = 0
        self.held: Tensor | None = None

    def want(self, hooks: Hooks | None) -> None:
        """Register a consumer; the first also registers this recipe with its inputs."""
        self.wanted += 1
        if self.wanted == 1:
            for part in self.call.parts:
                part.want(hooks)

    def value(self) -> Tensor:
        """Return the tensor, made again if nobody has asked for it yet."""
        y = self._made() if self.held is None else self.held
        self.wanted -= 1
        self.held = y if self.wanted > 0 else None
        return y

    def _made(self) -> Tensor:
        with torch.no_grad():
            y = self.call()
        if _geometry(y) == self.geometry:
            return y
        size, stride, _ = self.geometry
        return torch.empty_strided(size, stride, dtype=y.dtype, device=y.device).copy_(y)


class View:
    """A part of what a recipe makes, by size, strides and offset in its storage."""

    def __init__(self, recipe: Recipe, like: Tensor) -> None:
        self.recipe, self.geometry, self.leaves = recipe, _geometry(like), recipe.leaves

    def want(self, hooks: Hooks | None) -> View:
        """Register a consumer with the recipe of the whole."""
        self.recipe.want(hooks)
        return self

    def value(self) -> Tensor:
        """Return the part."""
        y = self.recipe.value()
        return y if self.geometry == self.recipe.geometry else y.as_strided(*self.geometry)


class RecordedCall:
    """A function with its arguments, tensors among them as parts, in the autocast that it was called in."""

    def __init__(self, func: Function, args: list[Any], kwargs: dict[str, Any], kind: str) -> None:
        self.func, self.args, self.kwargs = func, args, kwargs
        self.parts = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, KeptTensor | View)]
        self.kind, self.autocast = kind, _autocast(kind)

    def __call__(self) -> Tensor:
        """Compute it, with whatever graph is on."""
        args = [value_of(arg) for arg in self.args]
        kwargs = {name: value_of(arg) for name, arg in self.kwargs.items()}
        with _autocasting(self.kind, self.autocast):
            y: Tensor = self.func(*args, **kwargs)
        return y


class Replayed(torch.autograd.Function):
    """A function whose inputs are kept and nothing else: its backward pass computes it again, with a graph."""

    @staticmethod
    def forward(ctx: Any, func: Function, kwargs: dict[str, Any], *args: Any) -> Tensor:
        """Return ``func(*args, **kwargs)``; only tensors in ``args`` get gradients."""
        ctx.func, ctx.kwargs, ctx.kind = func, kwargs, args[0].device.type
        ctx.autocast = _autocast(ctx.kind)
        ctx.args = [None if isinstance(arg, Tensor) else arg for arg in args]
        ctx.tensors = [index for index, arg in enumerate(args) if isinstance(arg, Tensor)]
        ctx.save_for_backward(*(args[index] for index in ctx.tensors))
        y: Tensor = func(*args, **kwargs)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the function again and go back through that."""
        twice, needed = torch.is_grad_enabled(), ctx.needs_input_grad[2:]
        args, wanted = [*ctx.args], [index for index in ctx.tensors if needed[index]]
        for index, tensor in zip(ctx.tensors, ctx.saved_tensors, strict=True):
            args[index] = tensor if twice else tensor.detach().requires_grad_(needed[index])
        with torch.enable_grad(), _autocasting(ctx.kind, ctx.autocast):
            y = ctx.func(*args, **ctx.kwargs)
        gradients = torch.autograd.grad(y, [args[index] for index in wanted], grads[0], create_graph=twice)
        by_index = dict(zip(wanted, gradients, strict=True))
        return None, None, *(by_index.get(index) for index in range(len(args)))


def value_of(kept: Any) -> Any:
    """Return the tensor that is kept or made again; anything else as it is."""
    return kept.value() if isinstance(kept, KeptTensor | View) else kept


def storage_of(tensor: Tensor) -> int:
    """Return a number of the tensor's storage, its own as long as that lives."""
    return storage_number(tensor)


def _geometry(tensor: Tensor) -> Geometry:
    return tensor.size(), tensor.stride(), tensor.storage_offset()


def _autocast(kind: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


def _autocasting(kind: str, wanted: tuple[bool, torch.dtype]) -> AbstractContextManager[Any]:
    if _autocast(kind) == wanted:
        return nullcontext()
    return torch.autocast(kind, dtype=wanted[1], enabled=wanted[0], cache_enabled=False)
