"""From a model to its map: the readers in their order, and where the model calls the attention kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, own_modules
from mmpeft.anatomies.headed import Headed
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.libraries import diffusers, generic, open_clip, timm, transformers, transformers_text
from mmpeft.anatomies.libraries.attention_calls import POSITIONS, RULES, Rule
from mmpeft.anatomies.sites import AttentionSite, PositionsSite
from mmpeft.anatomies.towers import Block, Tower
from mmpeft.plugins import ANATOMIES, load_plugins

Reader = Callable[[nn.Module], Anatomy | None]
READERS: tuple[Reader, ...] = (
    timm.read,
    open_clip.read,
    transformers.read,
    transformers_text.read,
    diffusers.read,
)
"""The readers of the libraries that we know, in the order in which they are asked."""


@dataclass(frozen=True)
class External:
    """A model library known from outside: its reader, and where its modules call the attention kernel."""

    read: Reader
    attention: Rule | None = None


_REGISTERED: dict[Reader, External] = {}


def register_reader(read: Reader, *, attention: Rule | None = None) -> Reader:
    """Ask ``read`` for the map of a model, before the readers of ours; those registered last come first.

    ``read(model)`` returns an Anatomy, or None for a model that it doesn't know. Where the library has an attention of
    its own (every ``nn.MultiheadAttention`` is known), ``attention(model, path, module)`` returns the AttentionSite of
    a module that calls the kernel, or None. An installed package registers by an entry point in the group
    ``mmpeft.anatomies`` instead: a reader, or a module that has ``read`` and perhaps ``attention``.

    Returns:
        The reader, so that this is a decorator too.
    """
    if not callable(read):
        raise ValueError(f"read: {read!r} is no function of a model")
    _REGISTERED.pop(read, None)
    _REGISTERED[read] = External(read, attention)
    return read


@cache
def _installed() -> tuple[External, ...]:
    """Return what installed packages offer, in the order of their names."""
    libraries: list[tuple[str, External]] = []

    def take(name: str, offered: Any) -> None:
        read = getattr(offered, "read", offered)
        if not callable(read):
            raise TypeError(f"{offered!r} is no reader, nor a module with a function read(model)")
        libraries.append((name, External(read, getattr(offered, "attention", None))))

    load_plugins(ANATOMIES, take)
    return tuple(library for _, library in sorted(libraries, key=lambda named: named[0]))


def external() -> tuple[External, ...]:
    """Return the libraries known from outside, in the order in which they are asked: registered, then installed."""
    return (*reversed(_REGISTERED.values()), *_installed())


def anatomy(model: nn.Module) -> Anatomy:
    """Return the map of a model: what can be adapted in it. ``print`` shows it as a table.

    A model with a head of ours has the map of its backbone, and the head's. Then readers are asked in this order:
    those of ``register_reader``, those of installed packages, those of the libraries that we know. A model that none of
    them knows gets a generic anatomy from its linear and normalisation layers.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model: {type(model).__name__} is no torch module; a pipeline has an anatomy for each of its own, such as "
            "pipeline.unet"
        )
    return with_attention(_headed(model) if isinstance(model, Headed) else _read(model))


def _read(model: nn.Module) -> Anatomy:
    """Return the map by the first reader that knows the model; one that fails on it is named, and the next is asked."""
    for read in (*(library.read for library in external()), *READERS):
        try:
            known = read(model)
        except Exception as error:  # whatever a reader raises on a model that its author never saw
            warnings.warn(
                f"anatomy: the reader {read.__module__} can't read this {plain_class(model).__name__} "
                f"({type(error).__name__}: {error}): its map is that of the next reader, the generic one in the end",
                stacklevel=3,
            )
        else:
            if known is not None:
                return known
    return generic.read(model)


def _headed(model: Headed) -> Anatomy:
    """Return the anatomy of a model with a head of ours: the backbone's, and the head's sites as a tower ``task``."""
    inner = anatomy(model.backbone)
    towers = tuple(replace(tower, missing=_without_head(tower)) for tower in inner.towers)
    return model.complete(replace(inner, towers=(*towers, Tower("task", 0, (), model.head_sites()))))


def _without_head(tower: Tower) -> dict[str, str]:
    return {name: reason for name, reason in tower.missing.items() if name != "head"}


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """Return a site for every module of a model that calls the attention kernel."""
    rules = (*RULES, *(library.attention for library in reversed(external()) if library.attention is not None))
    sites = (rule(model, path, module) for path, module in own_modules(model) for rule in rules)
    return [*{id(site.host): site for site in sites if site is not None}.values()]


def with_attention(anatomy: Anatomy) -> Anatomy:
    """Return an anatomy with the attention sites of its model, each in its block."""
    sites = attention_sites(anatomy.model)
    return replace(anatomy, towers=tuple(_with_sites(tower, sites, anatomy.model) for tower in anatomy.towers))


def _with_sites(tower: Tower, attention: list[AttentionSite], model: nn.Module) -> Tower:
    def inside(block: Block) -> Block:
        within = (s for s in attention if s.host_path == block.path or s.host_path.startswith(block.path + "."))
        placed = (replace(site, tower=tower.name, layer=block.index) for site in within)
        return replace(block, sites=(*block.sites, *placed))

    sites = (*tower.sites, *_positions(tower, model))
    return replace(tower, blocks=tuple(map(inside, tower.blocks)), sites=sites)


def _positions(tower: Tower, model: nn.Module) -> Iterator[PositionsSite]:
    """Yield the table of learned positions of a tower, where it has one that takes their numbers."""
    for path, module in own_modules(model):
        inside = not tower.path or path.startswith(tower.path + ".")
        if inside and path.rpartition(".")[2] in POSITIONS and plain_class(module) is nn.Embedding:
            yield PositionsSite(name="positions", path=path, host=module, host_path=path, tower=tower.name)
