"""Tables for people: the anatomy of a model and the report on its adapters."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from rich.table import Table

    from mmpeft.injection.adapters import Adapters
    from mmpeft.injection.anatomy import Anatomy, Tower
    from mmpeft.injection.sites import Site


def anatomy_table(anatomy: Anatomy) -> str:
    """Return the map of a model as text: one row per kind of site, the like blocks together."""
    from rich.table import Table

    base = (p for path, p in anatomy.model.named_parameters() if "mmpeft" not in path.split("."))
    table = Table(title=f"{anatomy.describe()}, {_count(base):,} parameters", title_justify="left")
    for column in ("tower", "blocks", "site", "kind", "shape", "module"):
        table.add_column(column, overflow="fold")
    for tower in anatomy.towers:
        for site in tower.sites:
            table.add_row(tower.name, "", site.name, site.kind, site.shape, site.host_path)
        for blocks, sites in _alike(tower):
            for site in sites:
                own = site.host_path.split(".")
                table.add_row(tower.name, blocks, site.name, site.kind, site.shape, _starred(own, site))
        for name, reason in tower.missing.items():
            table.add_row(tower.name, "", f"no {name}", "", "", reason)
        table.add_section()
    return _render(table)


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


@dataclass(frozen=True)
class Report:
    """What the active adapters train and what they cost.

    ``rows`` counts trainable parameters by (tower, site, method). ``adapter_bytes`` is the file's size on disk without
    its header; ``state_bytes`` is weights, gradients and AdamW's two moments while training; ``saved_bytes`` what one
    forward pass keeps for the backward pass, measured when a batch was given.
    """

    rows: Mapping[tuple[str, str, str], int]
    trainable: int
    total: int
    adapter_bytes: int
    base_bytes: int
    state_bytes: int
    saved_bytes: int | None = None

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all, base and adapter together."""
        return 100 * self.trainable / self.total

    def __str__(self) -> str:
        from rich.table import Table

        table = Table(title="adapters", title_justify="left")
        for column in ("tower", "site", "method"):
            table.add_column(column)
        table.add_column("trainable", justify="right")
        for (tower, site, method), count in self.rows.items():
            table.add_row(tower, site, method, f"{count:,}")
        lines = [
            f"trainable {self.trainable:,} of {self.total:,} parameters ({self.percent:.3f} %)",
            f"adapter on disk {size(self.adapter_bytes)}; in training: frozen base {size(self.base_bytes)}, "
            f"adapter with gradients and AdamW states {size(self.state_bytes)}",
        ]
        if self.saved_bytes is not None:
            lines.append(f"activations kept for the backward pass {size(self.saved_bytes)} for this batch")
        return _render(table) + "\n".join(lines)


def make_report(adapters: Adapters, batch: object) -> Report:
    """Count the active adapters' parameters and bytes."""
    rows: Counter[tuple[str, str, str]] = Counter()
    stored = state = trainable = 0
    for name in adapters.active:
        for part in adapters.parts(name).values():
            for site, edit, key in part.places:
                counts = [parameter.numel() for parameter in edit.parameters() if parameter.requires_grad]
                trainable += sum(counts)
                rows[site.tower or "-", site.name or "root", key.rpartition(".")[2]] += sum(counts)
            stored += sum(tensor.nbytes for tensor in part.state_dict().values())
            state += sum(p.nbytes * 2 + 8 * p.numel() for p in part.parameters() if p.requires_grad)
    own = {id(parameter) for tree in adapters.trees.values() for parameter in tree.parameters()}
    base = [p for module in adapters.modules.values() for p in module.parameters() if id(p) not in own]
    total = _count(base) + sum(
        _count(part.parameters()) for name in adapters.active for part in adapters.parts(name).values()
    )
    saved = None if batch is None else saved_bytes(next(iter(adapters.modules.values())), batch)
    return Report(rows, trainable, total, stored, sum(p.nbytes for p in base), state, saved)


def saved_bytes(model: nn.Module, batch: object) -> int:
    """Return the bytes that one forward pass keeps for the backward pass, parameters excluded: each storage once."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**batch) if isinstance(batch, Mapping) else model(batch)
    del output
    return sum(kept.values())


def size(number: int) -> str:
    """Return bytes as text in binary units, such as ``1.5 MiB``."""
    value, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _count(parameters: Iterable[Any]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _render(table: Table) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
