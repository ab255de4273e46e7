"""Towers: a model's stacks of blocks, in order, with the sites in them and around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from mmpeft.anatomies.sites import Site

Layers = str | tuple[int, ...] | list[int]


@dataclass(frozen=True, eq=False)
class Block:
    """One block of a tower: its index, its path and its sites in order, and why it lacks some that others may have."""

    index: int
    path: str
    sites: tuple[Site, ...]
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Tower:
    """A stack of blocks (``vision``, ``text``, ``decoder`` ...), and the sites around them (embedding, norm, head)."""

    name: str
    width: int
    blocks: tuple[Block, ...]
    sites: tuple[Site, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    path: str = ""

    def under(self, path: str) -> Tower:
        """Return this tower as part of a bigger model, where its root has this path."""

        def moved(site: Site) -> Site:
            return replace(site, path=f"{path}.{site.path}", host_path=f"{path}.{site.host_path}")

        blocks = (Block(b.index, f"{path}.{b.path}", tuple(map(moved, b.sites)), b.missing) for b in self.blocks)
        whole = f"{path}.{self.path}".rstrip(".")
        return replace(self, blocks=tuple(blocks), sites=tuple(map(moved, self.sites)), path=whole)

    def all_sites(self, layers: Layers = "all") -> Iterator[Site]:
        """Yield the tower's own sites, then those of the chosen blocks; the own ones only when no layer is excluded."""
        chosen = choose_layers(layers, len(self.blocks))
        if layers == "all":
            yield from self.sites
        for block in self.blocks:
            if block.index in chosen:
                yield from block.sites


def choose_layers(layers: Layers, count: int) -> set[int]:
    """Return the indices that ``all``, ``first:4``, ``last:4`` or ``[0, 3, -1]`` mean among ``count`` blocks.

    None in a tower without blocks, as a head of ours is: the others are asked.
    """
    if layers == "all" or not count:
        return set(range(count))
    if isinstance(layers, str):
        end, _, number = layers.partition(":")
        if end not in ("first", "last") or not number.isdigit() or not 1 <= int(number) <= count:
            raise ValueError(
                f"layers: {layers!r} is none of 'all', 'first:N', 'last:N', [indices]; the tower has {count}"
            )
        return set(range(int(number))) if end == "first" else set(range(count - int(number), count))
    outside = [index for index in layers if not -count <= index < count]
    if outside:
        raise ValueError(f"layers: {outside} not among the tower's {count} blocks (0 to {count - 1})")
    return {index % count for index in layers}
