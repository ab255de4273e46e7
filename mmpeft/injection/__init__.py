"""The injection layer: anatomy, sites, edits, grafting and adapters, on which everything rests.

Importing this package needs no torch; its names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Adapters": "adapters",
    "adapt": "adapters",
    "Anatomy": "anatomy",
    "Block": "anatomy",
    "Tower": "anatomy",
    "reader": "anatomy",
    "Site": "sites",
    "LinearSite": "sites",
    "ConvSite": "sites",
    "NormSite": "sites",
    "EmbedSite": "sites",
    "BranchSite": "sites",
    "SequenceSite": "sites",
    "ParametersSite": "sites",
    "AttentionSite": "sites",
    "use_attention": "attention",
    "use_memory": "memory",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mmpeft.injection.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mmpeft.injection' has no attribute {name!r}")
