"""The map of a model: sites, towers and blocks, and what a reader draws it with. torch is imported on first use.

What a library in a package of its own needs is here; docs/extending.md shows how.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "anatomy": "Anatomy Joint NoSiteError own_modules parameters_site",
    "hosts": "plain_class",
    "layers": "is_convolution is_linear",
    "libraries.linear": "conv_site embed_site is_norm linear_site norm_site projection_sites site_name with_slices",
    "sites": "AttentionSite BranchSite ConvSite CrossAttentionSite DenoiserSite EmbedSite FeaturesSite LadderSite "
    "LinearSite LogitsSite NormSite ParametersSite PositionsSite PromptSite SequenceSite Site WeightSite WordsSite",
    "towers": "Block Tower",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
