"""Layer-wise learning rates: blocks further from the head learn slower (BEiT, Bao et al. 2021, arXiv:2106.08254)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.anatomies.reading import anatomy
from mmpeft.anatomies.towers import Tower
from mmpeft.injection.tree import Adapter


def layer_rates(parts: Mapping[str, Adapter], modules: Mapping[str, nn.Module], decay: float) -> dict[str, float]:
    """Return ``decay ** (layers behind)`` for each edit of an adapter, by its key (behind the module's label).

    As in timm: block i (from 0) of N has N - 1 - i blocks behind it, and the head if there is one. What stands in front
    of the blocks (embeddings, prompts) is one layer, and norms behind the last block count with it.

    Raises:
        ValueError: If ``decay`` is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay: {decay} is not above 0 and at most 1")
    rates = {}
    for label, part in parts.items():
        known = anatomy(modules[label])
        towers, heads = known.towers, {site.host_path for site in known.sites() if site.name == "head"}
        order = {path: number for number, (path, _) in enumerate(own_modules(modules[label]))}
        for site, _, key in part.places:
            path = site.host_path
            tower = next((t for t in towers if t.name == site.tower), None) or _tower(towers, path)
            behind = 0 if path in heads else bool(heads) + _blocks_behind(path, tower, order)
            rates[f"{label}.{key}".lstrip(".")] = decay**behind
    return rates


def _tower(towers: tuple[Tower, ...], path: str) -> Tower:
    """Return the innermost tower that a path is in."""
    inside = [tower for tower in towers if not tower.path or path == tower.path or path.startswith(f"{tower.path}.")]
    return max(inside, key=lambda tower: len(tower.path), default=towers[0])


def _blocks_behind(path: str, tower: Tower, order: Mapping[str, int]) -> int:
    count = len(tower.blocks)
    for block in tower.blocks:
        if path == block.path or path.startswith(f"{block.path}."):
            return count - 1 - block.index
    first = min((order[block.path] for block in tower.blocks), default=-1)
    return count if order.get(path, first) < first else 0
