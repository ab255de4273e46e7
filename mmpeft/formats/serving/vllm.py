"""HF peft's directory as vLLM's LoRA loader takes it: plain LoRA of one scale, whole layers, nothing besides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpeft.formats.any_file import write_tensors
from mmpeft.formats.hf_peft.peft_config import PREFIX
from mmpeft.formats.serving.served import ServedAdapter, read_served
from mmpeft.formats.storage import CONFIG, WEIGHTS, new_directory, write_json

LARGEST = 512
"""The greatest ``--max-lora-rank`` of vLLM."""


def export(directory: Path, dest: Path, base: Any = None) -> None:
    """Write one of our directories for ``vllm serve --enable-lora --lora-modules NAME=DEST``.

    vLLM reads one rank and one alpha: the rank written is the largest (``--max-lora-rank`` must be as large), and
    where scales differ they are folded into B.

    Raises:
        ValueError: For what vLLM's loader refuses or gets wrong; all of it at once.
    """
    served = read_served(directory, "vllm")
    problems = list(served.problems)
    if served.rank > LARGEST:
        problems.append(f"rank {served.rank}: vLLM's --max-lora-rank is at most {LARGEST}")
    served.refuse(problems)
    scales = {delta.scale for delta in served.deltas.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    with new_directory(dest) as partial:
        write_tensors(partial / WEIGHTS, _tensors(served, scale))
        write_json(partial / CONFIG, _config(served, scale))


def _tensors(served: ServedAdapter, scale: float) -> dict[str, Any]:
    tensors = {}
    for path, delta in served.deltas.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = delta.a
        tensors[f"{PREFIX}{path}.lora_B.weight"] = delta.scaled_to(scale)
    return tensors


def _config(served: ServedAdapter, scale: float) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": served.base,
        "r": served.rank,
        "lora_alpha": scale * served.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "target_modules": sorted({path.rpartition(".")[2] for path in served.deltas}),
    }
