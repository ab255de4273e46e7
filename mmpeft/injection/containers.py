"""Containers of torch as roots: an adapted ``nn.Sequential`` has its length, items and order, our tree behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from torch import nn

CONTAINERS = nn.Sequential | nn.ModuleList | nn.ModuleDict
TREE = "mmpeft"
CHANGING = (
    "__getitem__", "__setitem__", "__delitem__", "__add__", "__iadd__", "__mul__", "__imul__",
    "append", "insert", "extend", "pop", "update", "clear",
)  # fmt: skip
LISTING = ("keys", "items", "values")


def container_methods(cls: type[nn.Module]) -> dict[str, Any]:
    """Return the methods of a container's class that do not see our tree; none for another class."""
    if not issubclass(cls, CONTAINERS):
        return {}
    changing = {name: _without_tree(getattr(cls, name)) for name in CHANGING if hasattr(cls, name)}
    listing = {name: _listed(getattr(cls, name)) for name in LISTING if hasattr(cls, name)}
    by_name = issubclass(cls, nn.ModuleDict)

    def iterate(self: nn.Module) -> Iterator[Any]:
        return iter([name if by_name else module for name, module in self._modules.items() if name != TREE])

    def length(self: nn.Module) -> int:
        return len(self._modules) - (TREE in self._modules)

    return {**changing, **listing, "__iter__": iterate, "__len__": length}


def _without_tree(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that runs while the tree is away, and leaves it behind all others."""

    @wraps(method)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        tree = self._modules.pop(TREE, None)
        try:
            return method(self, *args, **kwargs)
        finally:
            if tree is not None:
                self._modules[TREE] = tree

    return run


def _listed(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def run(self: nn.Module) -> list[Any]:
        kept = [name != TREE for name in self._modules]
        return [item for item, keep in zip(method(self), kept, strict=True) if keep]

    return run
