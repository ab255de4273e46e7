"""The anatomy of a model as a table for people."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from mmpeft.kernels.quantized import shape_of

if TYPE_CHECKING:
    from rich.table import Table

    from mmpeft.anatomies.sites import Site
    from mmpeft.anatomies.towers import Tower


def anatomy_table(title: str, model: nn.Module, towers: Iterable[Tower]) -> str:
    """Return the map of a model as text: one row per kind of site, the like blocks together."""
    from rich.table import Table

    base = (p for path, p in model.named_parameters() if "mmpeft" not in path.split("."))
    table = Table(title=f"{title}, {numbers_in(base):,} parameters", title_justify="left")
    for column in ("tower", "blocks", "site", "kind", "shape", "module"):
        table.add_column(column, overflow="fold")
    for tower in towers:
        for site in tower.sites:
            table.add_row(tower.name, "", site.name, site.kind, site.shape, site.host_path)
        for blocks, sites in _alike(tower):
            for site in sites:
                parts = site.host_path.split(".")
                table.add_row(tower.name, blocks, site.name, site.kind, site.shape, _starred(parts, site))
        for name, reason in tower.missing.items():
            table.add_row(tower.name, "", f"no {name}", "", "", reason)
        table.add_section()
    return rendered(table)


def _alike(tower: Tower) -> Iterable[tuple[str, tuple[Site, ...]]]:
    groups: dict[tuple[tuple[str, str], ...], list[int]] = {}
    for block in tower.blocks:
        groups.setdefault(tuple((site.name, site.shape) for site in block.sites), []).append(block.index)
    for indices in groups.values():
        consecutive = indices == list(range(indices[0], indices[-1] + 1))
        span = f"{indices[0]}-{indices[-1]}" if consecutive and len(indices) > 1 else ", ".join(map(str, indices))
        yield span, tower.blocks[indices[0]].sites


def _starred(path: list[str], site: Site) -> str:
    return ".".join("*" if part.isdigit() and part == str(site.layer) else part for part in path)


def name_in_all_blocks(site: Site) -> str:
    """The site's name; of one named by its path, the same for all blocks."""
    return ".".join("*" if part.isdigit() else part for part in site.name.split(".")) or "root"


def numbers_in(parameters: Iterable[Any]) -> int:
    """Return how many numbers parameters hold, quantised ones too."""
    return sum(shape_of(parameter).numel() for parameter in parameters)


def rendered(table: Table) -> str:
    """Return a table of rich as text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
