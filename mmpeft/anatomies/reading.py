"""From a model to its map: the readers in their order, and where the model calls the attention kernel."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, own_modules
from mmpeft.anatomies.headed import Headed
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.libraries import diffusers, generic, open_clip, timm, transformers, transformers_text
from mmpeft.anatomies.libraries.attention_calls import POSITIONS, RULES, Rule
from mmpeft.anatomies.libraries.generic import generic_tower
from mmpeft.anatomies.libraries.stacks import free_names, root_of, stacks
from mmpeft.anatomies.sites import AttentionSite, NormSite, ParametersSite, PositionsSite, Site, WeightSite
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
    drawn = _headed(model) if isinstance(model, Headed) else with_all_stacks(_read(model))
    return with_shared(with_attention(drawn))


def with_all_stacks(anatomy: Anatomy) -> Anatomy:
    """Return an anatomy whose towers hold every repeated stack of blocks of its model.

    A stack that the reader doesn't know becomes the blocks of the tower around it, if that has none, or else a tower of
    its own, by the generic reader.
    """
    modules = dict(own_modules(anatomy.model))
    known = {block.path for tower in anatomy.towers for block in tower.blocks}
    around = {".".join(path.split(".")[:end]) for path in known for end in range(path.count(".") + 1)}
    towers = [*anatomy.towers]
    for parent, blocks in stacks(modules).items() if towers else ():
        depth = parent.count(".") + 2 if parent else 1
        lists = {at: ".".join(at.split(".")[:depth]) for at in blocks}
        unknown = [at for at in blocks if lists[at] not in around and not _within(at, known)]
        if unknown:
            name = free_names([parent], [tower.name for tower in towers])[0]
            root = root_of(parent, known) if known else parent
            towers = _completed(towers, generic_tower(name, modules, root, unknown, ()))
            known |= {*unknown}
    if len(towers) == len(anatomy.towers):
        return replace(anatomy, towers=tuple(towers))
    order = {path: index for index, path in enumerate(modules) if path} | {"": len(modules)}
    return replace(anatomy, towers=tuple(sorted(towers, key=lambda tower: order.get(tower.path, len(modules)))))


def _completed(towers: list[Tower], new: Tower) -> list[Tower]:
    """Return towers with a new one's blocks: in the tower without any that is around them, or as a tower in front."""
    around = [tower for tower in towers if not tower.path or _within(new.path, {tower.path})]
    home = max(around, key=lambda tower: len(tower.path), default=None)
    if home is None:
        return [*towers, new]
    inside = {block.path for block in new.blocks} | ({new.path} if new.path and home.blocks else set())
    rest = tuple(site for site in home.sites if not _within(site.host_path, inside))
    index = towers.index(home)
    if home.blocks:
        return [*towers[:index], new, replace(home, sites=rest), *towers[index + 1 :]]
    blocks = tuple(
        replace(block, sites=tuple(replace(site, tower=home.name) for site in block.sites)) for block in new.blocks
    )
    present = {site.name for block in blocks for site in block.sites}
    missing = {name: reason for name, reason in home.missing.items() if name not in present}
    filled = replace(home, blocks=blocks, sites=rest, missing=missing)
    return [*towers[:index], filled, *towers[index + 1 :]]


def _within(path: str, roots: Collection[str]) -> bool:
    return any(".".join(path.split(".")[:end]) in roots for end in range(1, path.count(".") + 2))


def with_shared(anatomy: Anatomy) -> Anatomy:
    """Return an anatomy that says of each weight whether another module has it too."""
    owners: dict[int, int] = {}
    for _, module in own_modules(anatomy.model):
        for tensor in {id(tensor) for tensor in module._parameters.values() if tensor is not None}:
            owners[tensor] = owners.get(tensor, 0) + 1
    if all(count == 1 for count in owners.values()):
        return anatomy

    def marked(site: Site) -> Site:
        names = site.names if isinstance(site, ParametersSite) else ("weight", "bias")
        names = (site.weight, site.bias) if isinstance(site, WeightSite) else names
        tensors = (site.host._parameters.get(name) for name in names)
        return replace(site, shared=any(owners.get(id(tensor), 1) > 1 for tensor in tensors))

    kinds = (WeightSite, NormSite, ParametersSite)

    def through(sites: tuple[Site, ...]) -> tuple[Site, ...]:
        return tuple(marked(site) if isinstance(site, kinds) else site for site in sites)

    towers = (
        replace(t, sites=through(t.sites), blocks=tuple(replace(b, sites=through(b.sites)) for b in t.blocks))
        for t in anatomy.towers
    )
    return replace(anatomy, towers=tuple(towers))


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
