"""The report on a model's adapters: what they train and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from mmpeft.anatomies.table import name_in_all_blocks, numbers_in, rendered
from mmpeft.edits import Unfreeze
from mmpeft.injection.tree import Tree
from mmpeft.inspection.live_bytes import LiveBytes
from mmpeft.inspection.outline import tensors
from mmpeft.inspection.step_memory import MakeOptimizer, StepMemory, output_of, own_loss, predict, size
from mmpeft.kernels.quantized import stored_bytes


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
        return rendered(table) + "\n".join(lines)

    def _least(self) -> str:
        return (
            f"a training step takes {size(self.base_bytes + self.state_bytes)} and activations: frozen base "
            f"{size(self.base_bytes)}, adapter with gradients and AdamW's moments {size(self.state_bytes)}; "
            "a batch shows what activations take"
        )


def make_report(
    trees: Mapping[str, Tree], modules: Mapping[str, nn.Module], batch: object, optimizer: MakeOptimizer
) -> Report:
    """Count the parameters and bytes of the adapters that are active in the trees of some modules."""
    rows: Counter[tuple[str, str, str]] = Counter()
    stored = state = trainable = added = 0
    lacking: list[str] = []
    for name in dict.fromkeys(name for tree in trees.values() for name in tree.active):
        for label, part in ((label, tree.adapters[name]) for label, tree in trees.items() if name in tree.adapters):
            lacking += [f"{label} has nothing of {reason}" for reason in part.lacking]
            for site, edit, key in part.places:
                counts = [parameter.numel() for parameter in edit.parameters() if parameter.requires_grad]
                trainable += sum(counts)
                added += 0 if isinstance(edit, Unfreeze) else numbers_in(edit.parameters())
                rows[site.tower or "-", name_in_all_blocks(site), key.rpartition(".")[2]] += sum(counts)
            stored += sum(tensor.nbytes for tensor in part.state_dict().values())
            state += sum(p.nbytes * 2 + 8 * p.numel() for p in part.parameters() if p.requires_grad)
    ours = {id(parameter) for tree in trees.values() for parameter in tree.parameters()}
    base = [p for module in modules.values() for p in module.parameters() if id(p) not in ours]
    step = None if batch is None else _step_memory(trees, [*modules.values()], batch, optimizer)
    own_bytes = sum(stored_bytes(p) for p in base)
    return Report(rows, trainable, numbers_in(base) + added, stored, own_bytes, state, step, tuple(lacking))


def _step_memory(
    trees: Mapping[str, Tree], modules: list[nn.Module], batch: object, optimizer: MakeOptimizer
) -> StepMemory:
    """Return the memory of a step of the first module, in training mode."""
    parts = (tree.adapters[name] for tree in trees.values() for name in tree.active)
    trained = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    given = dict(batch) if isinstance(batch, Mapping) else batch
    return predict(modules, lambda batch: own_loss(modules[0].train(), batch), [given], trained, optimizer)


def saved_bytes(model: nn.Module, batch: object) -> int:
    """Return the bytes that one forward pass keeps for the backward pass, parameters and the batch left out."""
    with LiveBytes([*model.parameters(), *model.buffers(), *tensors(batch)]) as live:
        output = output_of(model, batch)
        graph = [tensor.grad_fn for tensor in tensors(output)]
        del output
        kept = live.bytes
    del graph
    return kept
