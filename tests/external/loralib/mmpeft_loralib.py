"""Microsoft's loralib: what ``torch.save(loralib.lora_state_dict(model), path)`` writes of its ``Linear`` layers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from mmpeft import LoRA
from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.torch_file import read_flat
from mmpeft.settings import Settings


class Options(Settings):
    """What the file does not hold."""

    alpha: float = 1.0
    """lora_alpha, over the rank the scale of the deltas"""


def read(source: Path, options: Options) -> Imported:
    """Return LoRA at the layers that the file names, with A (rank, in) and B (out, rank)."""
    ledger = Ledger(source, read_flat(source))
    rank, _ = ledger.shape(r".*\.lora_A", 2)
    paths = [key.removesuffix(".lora_A") for key in ledger.values if key.endswith(".lora_A")]
    matrices = {key: value for key, value in ledger.values.items() if isinstance(value, Tensor) and value.ndim == 2}
    for path in paths:
        inputs = matrices[f"{path}.lora_A"].shape[1] if f"{path}.lora_A" in matrices else 0
        outputs = matrices[f"{path}.lora_B"].shape[0] if f"{path}.lora_B" in matrices else 0
        ledger.enter(f"{path}.lora.lora_A", f"{path}.lora_A", (rank, inputs))
        ledger.enter(f"{path}.lora.lora_B", f"{path}.lora_B", (outputs, rank))
    return Imported([LoRA(rank=rank, alpha=options.alpha, targets=tuple(paths))], ledger.close())


FORMAT = Foreign("loralib", r"\.lora_[AB]$", read, Options)
