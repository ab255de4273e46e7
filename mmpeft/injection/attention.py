"""Which kernel a model's attention runs on: `use_attention`, for every library and for this one model only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from torch import nn

from mmpeft.injection.anatomy import Anatomy, Block, Tower, own_modules
from mmpeft.injection.graft import Graft, check_forward, graft, plain_class, ungraft
from mmpeft.injection.planning import modules_of
from mmpeft.injection.sites import AttentionSite, PositionsSite
from mmpeft.kernels.attention import check_name
from mmpeft.kernels.backends import Backend

Rule = Callable[[nn.Module, str, nn.Module], AttentionSite | None]
_RULES: list[Rule] = []
ATTENTION = re.compile("Attention|Attn")
"""How libraries call classes that attend."""
POSITIONS = ("wpe", "position_embeddings")
"""How transformers calls tables of learned positions."""


def attention_rule(rule: Rule) -> Rule:
    """Register how one library's modules call the kernel: of a model, a path and the module there, or None."""
    _RULES.append(rule)
    return rule


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """Return a site for every module of a model that calls the attention kernel."""
    import mmpeft.anatomies  # noqa: F401  registers the rules

    found = (rule(model, path, module) for path, module in own_modules(model) for rule in _RULES)
    return [*{id(site.host): site for site in found if site is not None}.values()]


def use_attention(model: nn.Module | Mapping[str, nn.Module] | Any, backend: Backend) -> ExitStack:
    """Compute the attention of a model, or of all modules of a pipeline, by this kernel from now on.

    It may be called again at any time; ``auto`` gives the model back its library's own way. As a context manager,
    ``with use_attention(model, "math"): ...``, it puts the kernel of before back. Other models are not touched, and a
    copy of the model has its kernel. Whether a kernel can compute a call is seen when it is called.

    Raises:
        ValueError: If there is no such backend, or some attention of the model can't be reached.
        ImportError: If the backend's library is not installed.
    """
    check_name(backend)
    modules = modules_of(model)
    sites = [site for module in modules.values() for site in attention_sites(module)]
    if backend != "auto":
        _refuse(modules, sites, backend)
    before = ExitStack()
    for site in sites:
        before.callback(_set, site, _now(site))
        _set(site, backend)
    return before


def _now(site: AttentionSite) -> Backend:
    carried: Graft | None = site.host.__dict__.get("_graft")
    return "auto" if carried is None else carried.backend


def _set(site: AttentionSite, backend: Backend) -> None:
    host = site.host
    if backend != "auto":
        own = graft(host)
        own.note(site.switches)
        own.compute_with(backend, site)
        own.switch()
    elif "_graft" in host.__dict__:
        own = graft(host)
        own.compute_with(backend, None)
        own.switch()
        if not own.needed:
            ungraft(host)


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


def with_attention(anatomy: Anatomy) -> Anatomy:
    """Return an anatomy with the attention sites of its model, each in its block."""
    found = attention_sites(anatomy.model)
    return replace(anatomy, towers=tuple(_with_sites(tower, found, anatomy.model) for tower in anatomy.towers))


def _with_sites(tower: Tower, found: list[AttentionSite], model: nn.Module) -> Tower:
    def inside(block: Block) -> Block:
        own = (s for s in found if s.host_path == block.path or s.host_path.startswith(block.path + "."))
        return replace(block, sites=(*block.sites, *(replace(s, tower=tower.name, layer=block.index) for s in own)))

    sites = (*tower.sites, *_positions(tower, model))
    return replace(tower, blocks=tuple(map(inside, tower.blocks)), sites=sites)


def _positions(tower: Tower, model: nn.Module) -> Iterator[PositionsSite]:
    """Yield the table of learned positions of a tower, where it has one that takes their numbers."""
    for path, module in own_modules(model):
        inside = not tower.path or path.startswith(tower.path + ".")
        if inside and path.rpartition(".")[2] in POSITIONS and plain_class(module) is nn.Embedding:
            yield PositionsSite(name="positions", path=path, host=module, host_path=path, tower=tower.name)
