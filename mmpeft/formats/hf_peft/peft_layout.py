"""Where each tensor of an adapter lies among HF peft's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmpeft.formats.hf_peft.peft_config import AnyConfig, LoRAConfig
from mmpeft.formats.hf_peft.peft_prompts import PrefixConfig, PromptConfig
from mmpeft.formats.tensor_file import Shapes

Index = tuple[slice | int | list[int], ...]


@dataclass(frozen=True)
class Piece:
    """One tensor of ours, and its place in one of theirs."""

    ours: str
    theirs: str
    index: Index


@dataclass
class TensorLayout:
    """An adapter in peft's keys and shapes; ``defaults`` are peft's tensors where this adapter edits no rows."""

    hosts: list[str] = field(default_factory=list)
    """Paths of the modules that peft wraps."""
    inputs: list[str] = field(default_factory=list)
    """Those of them whose input is scaled."""
    saved: list[str] = field(default_factory=list)
    """Paths of the modules that are trained whole."""
    scales: dict[str, float] = field(default_factory=dict)
    """The factor on each low-rank delta."""
    pieces: list[Piece] = field(default_factory=list)
    defaults: dict[str, Tensor] = field(default_factory=dict)

    @property
    def shapes(self) -> Shapes:
        """Shapes of peft's tensors."""
        return {name: tuple(value.shape) for name, value in self.defaults.items()}

    def pack(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return peft's tensors."""
        packed: dict[str, Tensor] = {}
        for piece in self.pieces:
            value = state[piece.ours].detach()
            if piece.theirs not in packed:
                packed[piece.theirs] = torch.empty(self.defaults[piece.theirs].shape).to(value)
                packed[piece.theirs].copy_(self.defaults[piece.theirs])
            packed[piece.theirs][piece.index] = value
        return packed

    def unpack(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our tensors, bit for bit."""
        return {piece.ours: tensors[piece.theirs][piece.index] for piece in self.pieces}

    def changed(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Name the tensors that hold more than our pieces: another program has written into them.

        Magnitudes are left out: their defaults are norms of the base, which each machine computes a little differently.
        """
        by_name: dict[str, list[Index]] = {}
        for piece in self.pieces:
            by_name.setdefault(piece.theirs, []).append(piece.index)
        names = [name for name in tensors if not name.endswith("magnitude_vector")]
        changed = [name for name in names if self._has_more(name, tensors[name], by_name.get(name, []))]
        return [f"{name} has weights in rows that this adapter doesn't edit" for name in changed]

    def _has_more(self, name: str, value: Tensor, indices: list[Index]) -> bool:
        """Whether a tensor is another than its defaults outside of these pieces; most are one piece, and not copied."""
        if sum(value[index].numel() for index in indices) == value.numel():
            return False
        rest, defaults = value.clone(), self.defaults[name]
        for index in indices:
            rest[index] = defaults[index].to(rest)
        return bool((rest != defaults).any())

    def disagreements(self, config: AnyConfig, module: nn.Module) -> list[str]:
        """Name the modules for which peft would understand a configuration otherwise."""
        if isinstance(config, PromptConfig | PrefixConfig):
            return []
        paths = [path for path, _ in module.named_modules() if path and path.split(".")[0] != "mmpeft"]
        named = {"target_modules": (config.targets, self.hosts), "modules_to_save": (config.saves, self.saved)}
        problems: list[str] = []
        for key, (chosen, with_tensors) in named.items():
            problems += [
                f"{path}: {key} includes it, and it has no tensors"
                for path in paths
                if chosen(path) > (path in with_tensors)
            ]
            problems += [
                f"{path}: it has tensors, and {key} doesn't include it" for path in with_tensors if not chosen(path)
            ]
        if isinstance(config, LoRAConfig):
            wrong = [p for p, scale in self.scales.items() if not math.isclose(config.scale(p), scale, rel_tol=1e-6)]
            return problems + [f"{p}: the scale would be {config.scale(p):g}, and is {self.scales[p]:g}" for p in wrong]
        return problems + [
            f"{p}: input or output, by feedforward_modules" for p in self.hosts if config.feeds(p) != (p in self.inputs)
        ]
