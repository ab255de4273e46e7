"""What a run keeps on disk: checkpoints to go on from, and the best adapter so far."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from mmpeft.handle.adapters import Adapters
from mmpeft.training.average import Average
from mmpeft.training.optimizer import restore_state, state_of
from mmpeft.training.parallel import gathered, whole, write
from mmpeft.training.run.checkpoints import Groups, load_checkpoint, save_checkpoint
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.training.run.state import Progress, pack, unpack


@dataclass
class Store:
    """Saves and restores a run; every process must make the same calls, the first one writes."""

    directory: RunDirectory
    model: nn.Module
    adapters: Adapters
    optimizer: Optimizer
    average: Average | None
    accelerator: Accelerator
    fixed: dict[str, Any]
    best: dict[str, Tensor] = field(default_factory=dict)

    def save(self, progress: Progress) -> Path:
        """Write a checkpoint with the raw weights, their average, the best ones, and the optimizer's state."""
        groups: Groups = {
            "weights": self._weights(),
            "average": self.average.values if self.average else {},
            "best": self.best,
            "optimizer": state_of(self.optimizer, self._parameters()),
        }
        groups = {group: {name: whole(value) for name, value in named.items()} for group, named in groups.items()}
        state = pack(progress, self.accelerator, self.fixed)
        if self.accelerator.is_main_process:
            save_checkpoint(self.directory.checkpoints, progress.step, groups, state)
        self.accelerator.wait_for_everyone()
        return self.directory.checkpoints / f"step_{progress.step}"

    def resume(self, path: Path) -> Progress:
        """Restore everything from a checkpoint and return its place; nothing is written to the disk."""
        groups, state = load_checkpoint(path)
        live = self._weights()
        _refuse_others(groups["weights"], live)
        progress = unpack(state, self.accelerator, self.fixed)
        write(groups["weights"], live)
        if self.average:
            write(groups["average"], self.average.values)
        if "best" in groups:
            self.best = {name: value.clone() for name, value in live.items()}
            write(groups["best"], self.best)
        restore_state(self.optimizer, self._parameters(), groups.get("optimizer", {}))
        return progress

    def keep_best(self) -> None:
        """Remember the model's present weights as the best ones, in memory and under ``adapter/``."""
        self.best = {name: value.clone() for name, value in self._weights().items()}
        for name, path in self.directory.adapters(list(self.adapters.active)).items():
            with ExitStack() as stack:
                for part in self.adapters.parts(name).values():
                    stack.enter_context(gathered(part))
                if self.accelerator.is_main_process:
                    self.adapters.save(path, name)
        self.accelerator.wait_for_everyone()

    def restore_best(self) -> None:
        """Give the model the best weights."""
        write(self.best, self._weights())

    def finite(self) -> bool:
        """Tell whether all weights are numbers."""
        return all(bool(whole(value).isfinite().all()) for value in self._weights().values())

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.adapters.named_parameters())

    def _weights(self) -> dict[str, Tensor]:
        """All tensors of the active adapters, buffers too, sharing the model's memory."""
        with torch.no_grad():
            states = {name: self.adapters.state_dict(name) for name in self.adapters.active}
        return {f"{name}.{key}": value.detach() for name, state in states.items() for key, value in state.items()}


def _refuse_others(saved: dict[str, Tensor], live: dict[str, Tensor]) -> None:
    """Raise a ValueError unless both are weights of the same names and shapes."""
    shapes, wanted = ({name: tuple(value.shape) for name, value in group.items()} for group in (saved, live))
    names = [name for name in sorted(shapes.keys() | wanted.keys()) if shapes.get(name) != wanted.get(name)]
    if names:
        first = names[0]
        raise ValueError(
            f"train.resume: the checkpoint is of other weights: {len(names)} differ, as {first}, which was "
            f"{shapes.get(first, 'not there')} and is {wanted.get(first, 'not there')} now"
        )
