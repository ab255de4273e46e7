"""How much an adapter, or something in it, counts: one number, or numbers for chosen places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from mmpeft.anatomies.sites import Site
from mmpeft.settings import nearest

Weight = float | Mapping[str, float]
"""One number; or one by pattern, such as ``{"up_blocks.1.*": 0.5}``, and 0 where no pattern matches."""


def names_of(site: Site) -> tuple[str, ...]:
    """Return what patterns are compared with: the site's name, its path, and its path behind its tower's name."""
    return site.name, site.path, f"{site.tower}.{site.path}"


def weight_at(weight: Weight, site: Site) -> float:
    """Return the weight of a site: that of the last pattern (fnmatch) that matches one of its names, else 0."""
    if not isinstance(weight, Mapping):
        return weight
    matching = [
        value for pattern, value in weight.items() if any(fnmatchcase(name, pattern) for name in names_of(site))
    ]
    return matching[-1] if matching else 0.0


def check_patterns(weight: Weight, sites: Iterable[Site], key: str) -> None:
    """Raise a ValueError that names a pattern which matches no site; ``key`` is where the user wrote it."""
    names = {name for site in sites for name in names_of(site)}
    for pattern in weight if isinstance(weight, Mapping) else ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"{key}: {pattern!r} matches no place of this adapter{nearest(pattern, names)}")
