"""`load_model`: any supported library's model by one name, and the tiny pretrained ones shipped here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpeft.zoo.cards import models
    from mmpeft.zoo.entrance import load_model, load_tokenizer

_HOMES = {"load_model": "entrance", "load_tokenizer": "entrance", "models": "cards"}
__all__ = ["load_model", "load_tokenizer", "models"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
