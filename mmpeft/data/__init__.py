"""Data sets: readers, deterministic splits, and preprocessing as the model wants it. torch is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmpeft.data.config import DataConfig
    from mmpeft.data.image_sets import load_data
    from mmpeft.data.samples import DataSplits, ImageSplit

_HOMES = {"DataConfig": "config", "load_data": "image_sets", "DataSplits": "samples", "ImageSplit": "samples"}
__all__ = ["DataConfig", "DataSplits", "ImageSplit", "load_data"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
