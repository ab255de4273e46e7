"""The methods: each a validated configuration that turns an anatomy into a list of edits.

Importing them needs no torch. ``mmpeft.methods()`` returns the registry: the module itself is callable.
"""

from __future__ import annotations

import sys
from types import ModuleType

from mmpeft.methods.base import Method, parse, registry
from mmpeft.methods.bottleneck import AdapterPlus, AdaptFormer, Houlsby, ParallelAdapter, Pfeiffer
from mmpeft.methods.clip_adapters import CLIPAdapter, TipAdapter
from mmpeft.methods.convpass import Convpass
from mmpeft.methods.diffusion import ControlNet, CustomDiffusion, IPAdapter, T2IAdapter, TextualInversion
from mmpeft.methods.fact import FacT
from mmpeft.methods.fusion import AdapterFusion
from mmpeft.methods.ia3 import IA3
from mmpeft.methods.ladder import LadderSideTuning
from mmpeft.methods.llm_adapters import LLMAdapterLoRA, LLMAdapterParallel, LLMAdapterSeries
from mmpeft.methods.lora import CLIPLoRA, DoRA, LoRA, LoRAFA
from mmpeft.methods.prefix_tuning import PrefixTuning
from mmpeft.methods.prompts import IVLP, CoCoOp, CoOp, MaPLe, PromptSRC
from mmpeft.methods.repadapter import RepAdapter
from mmpeft.methods.res_tuning import ResTuning, ResTuningBypass
from mmpeft.methods.side_tuning import SideTuning
from mmpeft.methods.soft_prompts import PromptTuning, PTuning
from mmpeft.methods.ssf import SSF
from mmpeft.methods.unfreeze import BitFit, FullFineTuning, LinearProbe, NormTuning
from mmpeft.methods.unified import MAM, UniPELT
from mmpeft.methods.vpt import VPT

__all__ = [
    "IA3",
    "IVLP",
    "MAM",
    "SSF",
    "VPT",
    "AdaptFormer",
    "AdapterFusion",
    "AdapterPlus",
    "BitFit",
    "CLIPAdapter",
    "CLIPLoRA",
    "CoCoOp",
    "CoOp",
    "ControlNet",
    "Convpass",
    "CustomDiffusion",
    "DoRA",
    "FacT",
    "FullFineTuning",
    "Houlsby",
    "IPAdapter",
    "LLMAdapterLoRA",
    "LLMAdapterParallel",
    "LLMAdapterSeries",
    "LadderSideTuning",
    "LinearProbe",
    "LoRA",
    "LoRAFA",
    "MaPLe",
    "Method",
    "NormTuning",
    "PTuning",
    "ParallelAdapter",
    "Pfeiffer",
    "PrefixTuning",
    "PromptSRC",
    "PromptTuning",
    "RepAdapter",
    "ResTuning",
    "ResTuningBypass",
    "SideTuning",
    "T2IAdapter",
    "TextualInversion",
    "TipAdapter",
    "UniPELT",
    "parse",
    "registry",
]


class _Methods(ModuleType):
    def __call__(self) -> dict[str, type[Method]]:
        """Return every known method class by its registry name."""
        return registry()


sys.modules[__name__].__class__ = _Methods
