"""Tables for people: the anatomy of a model and the report on its adapters."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from mmpeft.injection.edits import Unfreeze
from mmpeft.injection.live_bytes import LiveBytes
from mmpeft.injection.outline import tensors
from mmpeft.injection.step_memory import MakeOptimizer, StepMemory, output_of, own_loss, predict, size
from mmpeft.kernels.quantized import shape_of, stored_bytes

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
    weights, gradients and AdamW's two moments while training; ``step`` the memory of a training step, where a batch was
    given. ``lacking`` names modules of a pipeline without a site of a method.
    """

    rows: Mapping[tuple[str, str, str], int]
    trainable: int
    total: int
    adapter_bytes: int
    base_bytes: int
    state_bytes: int
    step: StepMemory | None = None
    lacking: tuple[str, ...] = ()

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all, base and adapter together."""
        return 100 * self.trainable / self.total

    @property
    def peak_bytes(self) -> int | None:
        """The most bytes of tensors at one time in a training step; None without a batch."""
        return None if self.step is None else self.step.peak

    @property
    def saved_bytes(self) -> int | None:
        """What one forward pass keeps for the backward pass; None without a batch."""
        return None if self.step is None else self.step.kept

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
            self._least() if self.step is None else str(self.step),
            *self.lacking,
        ]
        return _render(table) + "\n".join(lines)

    def _least(self) -> str:
        return (
            f"a training step takes {size(self.base_bytes + self.state_bytes)} and activations: frozen base "
            f"{size(self.base_bytes)}, adapter with gradients and AdamW's moments {size(self.state_bytes)}; "
            "a batch shows what activations take"
        )


def make_report(adapters: Adapters, batch: object, optimizer: MakeOptimizer) -> Report:
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
    step = None if batch is None else _step_memory(adapters, batch, optimizer)
    own_bytes = sum(stored_bytes(p) for p in base)
    return Report(rows, trainable, _count(base) + added, stored, own_bytes, state, step, tuple(lacking))


def _step_memory(adapters: Adapters, batch: object, optimizer: MakeOptimizer) -> StepMemory:
    """Return the memory of a step of the first module, in training mode."""
    modules = list(adapters.modules.values())
    given = dict(batch) if isinstance(batch, Mapping) else batch
    return predict(modules, lambda own: own_loss(modules[0].train(), own), [given], adapters.parameters(), optimizer)


def _alike_name(site: Site) -> str:
    """The site's name; of one named by its path, the same for all blocks."""
    return ".".join("*" if part.isdigit() else part for part in site.name.split(".")) or "root"


def saved_bytes(model: nn.Module, batch: object) -> int:
    """Return the bytes that one forward pass keeps for the backward pass, parameters and the batch left out."""
    with LiveBytes([*model.parameters(), *model.buffers(), *tensors(batch)]) as live:
        output = output_of(model, batch)
        graph = [tensor.grad_fn for tensor in tensors(output)]
        del output
        kept = live.bytes
    del graph
    return kept


def _count(parameters: Iterable[Any]) -> int:
    return sum(shape_of(parameter).numel() for parameter in parameters)


def _render(table: Table) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
