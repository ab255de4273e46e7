"""Which kernel a model's attention runs on: `use_attention`, for every library and for this one model only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.anatomies.hosts import carried_by, plain_class
from mmpeft.anatomies.reading import attention_sites
from mmpeft.anatomies.sites import AttentionSite
from mmpeft.handle.setting import Setting
from mmpeft.injection.graft import Kernel, check_forward
from mmpeft.injection.pipelines import modules_of
from mmpeft.kernels.attention import check_name
from mmpeft.kernels.backends import Backend

ATTENTION = re.compile("Attention|Attn")
"""How libraries call classes that attend."""


def use_attention(model: nn.Module | Mapping[str, nn.Module] | Any, backend: Backend) -> Setting:
    """Compute the attention of a model, or of all modules of a pipeline, by this kernel from now on.

    It may be called again at any time; ``auto`` gives the model back its library's own way. As a context manager,
    ``with use_attention(model, "math"): ...``, it holds for what runs inside, in this thread or task only. Other models
    are not touched, and a copy of the model has its kernel. Whether a kernel can compute a call is seen when it is
    called.

    Raises:
        ValueError: If there is no such backend, or some attention of the model can't be reached.
        ImportError: If the backend's library is not installed.
    """
    check_name(backend)
    modules = modules_of(model)
    sites = [site for module in modules.values() for site in attention_sites(module)]
    if backend != "auto":
        _refuse(modules, sites, backend)
    changed = sites if backend != "auto" else [site for site in sites if carried_by(site.host)]
    return Setting({site.host: ("kernel", Kernel(backend, None if backend == "auto" else site)) for site in changed})


def _refuse(modules: Mapping[str, nn.Module], sites: list[AttentionSite], backend: Backend) -> None:
    """Raise a ValueError for attention that a backend would not reach; nothing has been changed yet."""
    names = ", ".join(plain_class(module).__name__ for module in modules.values())
    if not sites:
        raise ValueError(f"attention: {backend!r}: {names} has no attention by a kernel that can be chosen")
    problems = [f"{site.path}: {site.refusal}" for site in sites if site.refusal]
    hosts = {id(site.host) for site in sites}
    for module in modules.values():
        problems += [
            f"{path}: {plain_class(m).__name__} computes attention by itself" for path, m in _own(module, hosts)
        ]
    if problems:
        rest = "" if len(problems) < 5 else f" ... ({len(problems)} in all)"
        raise ValueError(f"attention: {backend!r} can't reach {'; '.join(problems[:4])}{rest}: choose auto")
    for site in sites:
        check_forward(site.host)


def _own(model: nn.Module, hosts: set[int]) -> list[tuple[str, nn.Module]]:
    """Return modules that are called attention and neither are, hold nor belong to a host."""
    modules = dict(own_modules(model))
    reached = {id(part) for m in modules.values() if id(m) in hosts for part in m.modules()}
    named = ((path, m) for path, m in modules.items() if ATTENTION.search(plain_class(m).__name__))
    return [(path, m) for path, m in named if not any(id(part) in reached for part in m.modules())]
