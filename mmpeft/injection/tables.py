"""Tables for people: the anatomy of a model and the report on its adapters."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmpeft.injection.edits import Unfreeze
from mmpeft.kernels.quantized import shape_of, stored, stored_bytes

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

    ``rows`` counts trainable parameters by (tower, site, method); ``total`` all that compute, a frozen parameter and
    its trainable copy as one. ``adapter_bytes`` is the file's size on disk without its header; ``state_bytes`` is
    weights, gradients and AdamW's two moments while training; ``saved_bytes`` what one forward pass keeps for the
    backward pass, measured when a batch was given. ``lacking`` names modules of a pipeline without a site of a method.
    """

    rows: Mapping[tuple[str, str, str], int]
    trainable: int
    total: int
    adapter_bytes: int
    base_bytes: int
    state_bytes: int
    saved_bytes: int | None = None
    lacking: tuple[str, ...] = ()

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all, base and adapter together."""
        return 100 * self.trainable / self.total

    @property
    def step_bytes(self) -> int:
        """What a training step needs at least: weights, gradients, AdamW's moments, and activations if measured."""
        return self.base_bytes + self.state_bytes + (self.saved_bytes or 0)

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
            f"adapter on disk {size(self.adapter_bytes)}",
            f"a training step needs {size(self.step_bytes)} or more: frozen base {size(self.base_bytes)}, adapter with "
            f"gradients and AdamW's moments {size(self.state_bytes)}, activations "
            + ("not measured (give a batch)" if self.saved_bytes is None else size(self.saved_bytes)),
            *self.lacking,
        ]
        return _render(table) + "\n".join(lines)


def make_report(adapters: Adapters, batch: object) -> Report:
    """Count the active adapters' parameters and bytes."""
    rows: Counter[tuple[str, str, str]] = Counter()
    stored = state = trainable = added = 0
    lacking: list[str] = []
    for name in adapters.active:
        for label, part in adapters.parts(name).items():
            lacking += [f"{label} has nothing of {reason}" for reason in part.lacking]
            for site, edit, key in part.places:
                counts = [parameter.numel() for parameter in edit.parameters() if parameter.requires_grad]
                trainable += sum(counts)
                added += 0 if isinstance(edit, Unfreeze) else _count(edit.parameters())
                rows[site.tower or "-", _alike_name(site), key.rpartition(".")[2]] += sum(counts)
            stored += sum(tensor.nbytes for tensor in part.state_dict().values())
            state += sum(p.nbytes * 2 + 8 * p.numel() for p in part.parameters() if p.requires_grad)
    own = {id(parameter) for tree in adapters.trees.values() for parameter in tree.parameters()}
    base = [p for module in adapters.modules.values() for p in module.parameters() if id(p) not in own]
    saved = None if batch is None else saved_bytes(next(iter(adapters.modules.values())), batch)
    own_bytes = sum(stored_bytes(p) for p in base)
    return Report(rows, trainable, _count(base) + added, stored, own_bytes, state, saved, tuple(lacking))


def _alike_name(site: Site) -> str:
    """The site's name; of one named by its path, the same for all blocks."""
    return ".".join("*" if part.isdigit() else part for part in site.name.split(".")) or "root"


def saved_bytes(model: nn.Module, batch: object) -> int:
    """Return the bytes that one forward pass keeps for the backward pass, parameters excluded: each storage once."""
    own = [part for tensor in [*model.parameters(), *model.buffers()] for part in stored(tensor)]
    weights = {tensor.untyped_storage().data_ptr() for tensor in own}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        for storage in (part.untyped_storage() for part in stored(tensor)):
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
    return sum(shape_of(parameter).numel() for parameter in parameters)


def _render(table: Table) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
