"""The map of a model: sites, towers and blocks, and the readers that draw it. torch is imported on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    **dict.fromkeys(("Anatomy", "NoSiteError"), "anatomy"),
    **dict.fromkeys(("Block", "Tower"), "towers"),
    **dict.fromkeys(
        (
            "AttentionSite",
            "BranchSite",
            "ConvSite",
            "EmbedSite",
            "LinearSite",
            "NormSite",
            "ParametersSite",
            "SequenceSite",
            "Site",
            "WeightSite",
        ),
        "sites",
    ),
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
