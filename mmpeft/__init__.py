"""mmpeft adapts frozen foundation models - vision transformers, CLIP, Stable Diffusion, language models.

Importing it is quick: torch and the model libraries load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "adapt": "mmpeft.handle.adapters",
    "adapters": "mmpeft.handle.adapters",
    "Adapters": "mmpeft.handle.adapters",
    "anatomy": "mmpeft.anatomies.reading",
    "ControlImage": "mmpeft.edits",
    "ImagePrompt": "mmpeft.edits",
    "load": "mmpeft.handle.loading",
    "load_model": "mmpeft.zoo",
    "methods": "mmpeft",
    "quantize": "mmpeft.zoo.quantization",
    "register_reader": "mmpeft.anatomies.reading",
    "use_attention": "mmpeft.handle.attention_backend",
    "use_memory": "mmpeft.handle.memory_level",
    "zero_shot": "mmpeft.zoo.zero_shot",
    **dict.fromkeys(
        (
            "AdaptFormer",
            "AdapterFusion",
            "AdapterPlus",
            "BitFit",
            "CLIPAdapter",
            "CLIPLoRA",
            "CoCoOp",
            "ControlNet",
            "Convpass",
            "CoOp",
            "CustomDiffusion",
            "DoRA",
            "FacT",
            "FullFineTuning",
            "Houlsby",
            "IA3",
            "IPAdapter",
            "IVLP",
            "LadderSideTuning",
            "LinearProbe",
            "LLMAdapterLoRA",
            "LLMAdapterParallel",
            "LLMAdapterSeries",
            "LoRA",
            "LoRAFA",
            "MAM",
            "MaPLe",
            "Method",
            "NormTuning",
            "ParallelAdapter",
            "Pfeiffer",
            "PrefixTuning",
            "PTuning",
            "PromptSRC",
            "PromptTuning",
            "RepAdapter",
            "ResTuning",
            "ResTuningBypass",
            "SideTuning",
            "SSF",
            "T2IAdapter",
            "TextualInversion",
            "TipAdapter",
            "UniPELT",
            "VPT",
        ),
        "mmpeft.methods",
    ),
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "methods":
        return import_module("mmpeft.methods")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mmpeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
