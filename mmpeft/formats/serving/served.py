"""What servers of language models take of a LoRA: its deltas by layer, and why they would refuse the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmpeft.formats.any_file import read_values
from mmpeft.formats.hf_peft.peft_config import PREFIX, LoRAConfig, read_config
from mmpeft.formats.storage import CONFIG, read_json, weights_in
from mmpeft.formats.tensor_file import refuse


@dataclass(frozen=True)
class ServedDelta:
    """``scale * B A`` of one layer, with A (rank, in) and B (out, rank)."""

    a: Tensor
    b: Tensor
    scale: float

    def scaled_to(self, scale: float) -> Tensor:
        """Return the B with which another scale gives the same delta."""
        return self.b if scale == self.scale else (self.b.double() * (self.scale / scale)).to(self.b.dtype)


@dataclass(frozen=True)
class ServedAdapter:
    """An adapter to be served: deltas by the paths of their layers."""

    directory: Path
    format: str
    deltas: dict[str, ServedDelta]
    base: str
    problems: list[str]

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max(len(delta.a) for delta in self.deltas.values())

    def refuse(self, problems: Sequence[str]) -> None:
        """Raise one ValueError with all problems, if there are any."""
        if problems:
            raise ValueError(f"{self.directory}: format {self.format} can't hold this:\n  " + "\n  ".join(problems))


def read_served(directory: Path, format: str) -> ServedAdapter:
    """Return an adapter's plain deltas, and what else it has: DoRA, trained modules, experts, embeddings.

    Raises:
        ValueError: If it is no LoRA that HF peft knows.
    """
    weights = weights_in(directory)
    if not (directory / CONFIG).is_file():
        raise ValueError(f"{directory}: format {format} holds LoRA only, and HF peft knows none in this one")
    config = read_config(directory)
    if not isinstance(config, LoRAConfig):
        raise ValueError(f"{directory}: format {format} holds LoRA only, not {config.peft_type}")
    values = read_values(weights)
    paths = config.paths({name: tuple(value.shape) for name, value in values.items()})
    refuse(weights, _broken(values, paths))
    problems = ["DoRA: its magnitudes have no place: merge the adapter instead"] if config.use_dora else []
    known = {f"{PREFIX}{path}.lora_{letter}.weight" for path in paths for letter in "AB"}
    others = [name for name in values if name not in known and not name.endswith("magnitude_vector")]
    problems += [f"{name}: only LoRA of linear layers is served: merge the adapter instead" for name in others]
    deltas = {
        path: ServedDelta(
            values[f"{PREFIX}{path}.lora_A.weight"], values[f"{PREFIX}{path}.lora_B.weight"], config.scale(path)
        )
        for path in paths
    }
    base = read_json(directory / CONFIG).get("base_model_name_or_path") or ""
    return ServedAdapter(directory, format, deltas, str(base), problems)


def _broken(values: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    """Say where a file has no pair of A (rank, in) and B (out, rank)."""
    problems = [] if paths else ["no tensor is named like a LoRA's A"]
    for path in paths:
        a, b = (values.get(f"{PREFIX}{path}.lora_{letter}.weight") for letter in "AB")
        if b is None:
            problems.append(f"missing {PREFIX}{path}.lora_B.weight")
        elif a is None or a.ndim < 2 or b.ndim < 2 or len(a) != b.shape[1] or not len(a):
            problems.append(f"{path}: A and B are of shapes that don't fit")
    return problems
