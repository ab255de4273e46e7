"""Adapters on disk: mmpeft's own directory, and the formats of other libraries and of papers' code, one file each.

Importing it needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mmpeft.settings import nearest

HOSTED = {
    "diffusers_lora": "diffusers' pytorch_lora_weights.safetensors: LoRA, DoRA (needs --base)",
    "kohya": "kohya's LoRA, one .safetensors file: lora_unet_*, lora_te_* (needs --base)",
    "comfyui": "ComfyUI's LoRA, one .safetensors file: diffusion_model.* (needs --base)",
    "ip_adapter": "IP-Adapter and Plus, one .safetensors or .bin file (needs --base)",
    "controlnet": "ControlNet in diffusers' directory (needs --base)",
    "controlnet_original": "ControlNet as its authors write it, one .safetensors or .pth file (needs --base)",
    "t2i_adapter": "T2I-Adapter in diffusers' directory (needs --base)",
    "custom_diffusion": "diffusers' directory of Custom Diffusion and its words; reads delta.bin too (needs --base)",
    "textual_inversion": "learned_embeds.safetensors; reads embeddings of A1111 and kohya too (needs --base)",
}
"""Formats of diffusion models, which name the parts of the model."""
READ = {
    "peft": "HF peft's directory: LoRA, rsLoRA, DoRA, IA3, prefix tuning (written with --base)",
    "adapterhub": "AdapterHub's directory of a bottleneck adapter: Houlsby, Pfeiffer, parallel (needs --base)",
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
    **HOSTED,
}
"""What ``mmpeft import`` reads."""
WRITTEN = {
    "peft": READ["peft"],
    **HOSTED,
    "vllm": "HF peft's directory within the limits of vLLM's LoRA loader",
    "gguf": "llama.cpp's LoRA, one .gguf file (needs --base)",
    "class_embeddings": "of a zero-shot classifier's run (RUN in place of ADAPTER), one .safetensors file to serve",
}
"""What ``mmpeft export`` writes."""
_ROOMS = {
    **dict.fromkeys(HOSTED, "diffusion"),
    "peft": "hf_peft",
    "adapterhub": "adapterhub",
    **dict.fromkeys(("vllm", "gguf", "class_embeddings"), "serving"),
}
_FILES = {"peft": "converting"}


def export(directory: str | Path, dest: str | Path, format: str, *, base: Any = None) -> None:
    """Write an adapter that mmpeft saved in another library's format; one that it can't hold is a ValueError.

    ``base`` is the model that the adapter is for, a module, a dict of modules or a pipeline: formats that name the
    parts of the model need it.
    """
    _refuse_stages(Path(directory), base)
    module_of(format, WRITTEN).export(Path(directory), Path(dest), base)


def convert(source: str | Path, dest: str | Path, format: str, *, base: Any = None, **options: Any) -> list[str]:
    """Write another library's adapter, or a paper's checkpoint, as one of mmpeft's; nothing in it is run.

    ``base`` is as for ``export``; ``options`` give what a format's files do not hold. Returns what was assumed and what
    was left out, a line each.
    """
    notes: list[str] = module_of(format, READ).convert(Path(source), Path(dest), options, base)
    return notes


def _refuse_stages(directory: Path, base: Any) -> None:
    """Raise a ValueError for an adapter on a merged base: no other format can say so, unless the base has it all."""
    from mmpeft.formats.native import read
    from mmpeft.formats.stages import check_stages
    from mmpeft.formats.storage import MANIFEST
    from mmpeft.injection.pipelines import modules_of

    manifest = read(directory).manifest if (directory / MANIFEST).is_file() else None
    if manifest is not None:
        check_stages(directory, manifest.stages, {} if base is None else modules_of(base))


def module_of(format: str, known: dict[str, str] = READ | WRITTEN) -> ModuleType:
    """Return the module of a format; one that is not among the ``known`` is a ValueError with the nearest name."""
    if format not in known:
        raise ValueError(f"format: unknown {format!r}{nearest(format, known)}")
    return import_module(f"mmpeft.formats.{_ROOMS.get(format, 'papers')}.{_FILES.get(format, format)}")
