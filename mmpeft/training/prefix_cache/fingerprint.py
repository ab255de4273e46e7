"""What a prefix computes with, as one short text: two models of the same text give the same numbers."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import torch
from torch import nn

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.anatomies.hosts import plain_class
from mmpeft.data.tensor_store import take_in
from mmpeft.inspection.frozen_prefix import FrozenPrefix


def fingerprint(model: nn.Module, prefix: FrozenPrefix, *settings: str) -> str:
    """Hash weights, buffers, classes and plain attributes of all modules but those behind the prefix's landing.

    ``settings`` are what else the numbers depend on: precision, mode.
    """
    hashed = blake2b("/".join([prefix.place, *settings, torch.__version__]).encode(), digest_size=16)
    later = tuple(f"{path}." for path in prefix.later if path)
    for path, module in own_modules(model):
        if f"{path}.".startswith(later):
            continue
        kind = plain_class(module)
        hashed.update(f"{path}:{kind.__module__}.{kind.__qualname__}{sorted(_attributes(module))}".encode())
        named = (*module._parameters.items(), *module._buffers.items())
        take_in(hashed, ((name, tensor) for name, tensor in named if tensor is not None))
    return hashed.hexdigest()


def _attributes(module: nn.Module) -> list[str]:
    """Numbers and words that a module was built with: of heads, the epsilon of a norm."""
    return [f"{name}={value}" for name, value in vars(module).items() if _is_plain(value) and _counts(name)]


def _counts(name: str) -> bool:
    return not name.startswith("_") and name != "training"


def _is_plain(value: Any) -> bool:
    inner = value if isinstance(value, tuple) else (value,)
    return all(isinstance(item, int | float | str | None) for item in inner)
