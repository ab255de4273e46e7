"""A host that runs with other parameters or attributes than its own, on a twin that other threads never see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

Forward = Callable[..., Any]


def replaced(
    host: nn.Module,
    tensors: dict[str, Tensor],
    forward: Forward,
    args: Any,
    kwargs: Any,
    attributes: Mapping[str, Any] | None = None,
) -> Any:
    """Run ``forward`` while ``tensors`` stand in for the host's parameters of those names, and other ``attributes``.

    It runs on a twin of the host, which shares all but these with it: so other threads' passes never see them.
    """
    if not tensors and not attributes:
        return forward(host, *args, **kwargs)
    if torch.compiler.is_compiling():
        return _exchanged(host, tensors, attributes or {}, forward, args, kwargs)
    twin = host.__class__.__new__(host.__class__)
    given = {**host.__dict__, **(attributes or {}), "_parameters": {**host._parameters, **tensors}, TWIN: True}
    twin.__dict__.update(given)
    try:
        return forward(twin, *args, **kwargs)
    finally:
        for name, value in twin.__dict__.items():
            if name not in given or value is not given[name]:
                host.__dict__[name] = value


TWIN = "_mmpeft_twin"
"""Tells a twin from its host."""


def _exchanged(
    host: nn.Module, tensors: dict[str, Tensor], attributes: Mapping[str, Any], forward: Forward, args: Any, kwargs: Any
) -> Any:
    """Do the same on the host itself: the compiler knows no twins, and makes nothing of what is put back."""
    parameters = parameters_of(host)
    parameters_before = {name: parameters[name] for name in tensors if name in parameters}
    before = {name: getattr(host, name) for name in attributes}
    try:
        parameters.update(tensors)
        for name, value in attributes.items():
            setattr(host, name, value)
        host.__dict__[TWIN] = True
        return forward(host, *args, **kwargs)
    finally:
        del host.__dict__[TWIN]
        for name in tensors:
            del parameters[name]
        parameters.update(parameters_before)
        for name, value in before.items():
            setattr(host, name, value)


def parameters_of(host: nn.Module) -> dict[str, Tensor | None]:
    """Return a host's own parameters as a dict that also takes tensors that are no parameters, for a while."""
    return cast(dict[str, Tensor | None], host._parameters)
