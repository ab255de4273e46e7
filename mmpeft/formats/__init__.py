"""Adapters on disk: mmpeft's own directory, and the formats of other libraries and of papers' code, one file each.

Importing it needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mmpeft.settings import nearest

READ = {
    "peft": "HF peft's directory: LoRA, rsLoRA, DoRA, IA3",
    "adaptformer": "AdaptFormer's checkpoint-{epoch}.pth",
    "clip_lora": "CLIP-LoRA's lora_weights.pt",
    "convpass": "Convpass's {dataset}.pt",
    "dassl": "a Dassl directory of CoOp, CoCoOp, MaPLe, IVLP, VPT for CLIP, PromptSRC or CLIP-Adapter",
    "fact": "FacT's {dataset}.pt, tensor train or Tucker",
    "repadapter": "RepAdapter's {dataset}.pt",
    "res_tuning": "the directory of Res-Tuning-Bypass by ModelScope's swift",
    "ssf": "SSF's model_best.pth.tar",
    "tip_adapter": "Tip-Adapter's directory of keys, values and, for Tip-Adapter-F, trained keys",
    "vpt": "VPT's prompt_ep{epoch}.pth",
}
"""What ``mmpeft import`` reads."""
WRITTEN = {
    "peft": READ["peft"],
    "class_embeddings": "of a zero-shot classifier's run (RUN in place of ADAPTER), one .safetensors file to serve",
}
"""What ``mmpeft export`` writes."""


def export(directory: Path, dest: Path, format: str) -> None:
    """Write an adapter that mmpeft saved in another library's format; one that it can't hold is a ValueError."""
    _module(format, WRITTEN).export(directory, dest)


def convert(source: Path, dest: Path, format: str, **options: Any) -> list[str]:
    """Write another library's adapter, or a paper's checkpoint, as one of mmpeft's; nothing in it is run.

    ``options`` give what a format's files do not hold. Returns what was assumed and what was left out, a line each.
    """
    notes: list[str] = _module(format, READ).convert(source, dest, options)
    return notes


def _module(format: str, known: dict[str, str]) -> ModuleType:
    if format not in known:
        raise ValueError(f"format: unknown {format!r}{nearest(format, known)}")
    return import_module(f"mmpeft.formats.{format}")
