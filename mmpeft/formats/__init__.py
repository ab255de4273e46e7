"""Adapters on disk: mmpeft's own directory, and the formats of other libraries and of papers' code, one file each.

Importing it needs no torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpeft.plugins import FORMATS, load_plugins, offers
from mmpeft.settings import nearest

if TYPE_CHECKING:
    from mmpeft.formats.foreign import Foreign

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
    exporter = format_named(format, writable())
    if not hasattr(exporter, "export"):
        raise ValueError(f"format: {format!r} of an installed package is read, not written")
    exporter.export(Path(directory), Path(dest), base)


def convert(source: str | Path, dest: str | Path, format: str, *, base: Any = None, **options: Any) -> list[str]:
    """Write another library's adapter, or a paper's checkpoint, as one of mmpeft's; nothing in it is run.

    ``base`` is as for ``export``; ``options`` give what a format's files do not hold. Returns what was assumed and what
    was left out, a line each.
    """
    notes: list[str] = format_named(format, readable()).convert(Path(source), Path(dest), options, base)
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


def readable() -> dict[str, str]:
    """Return the formats that ``convert`` reads, those of installed packages too, with a line on each."""
    return READ | _offered()


def writable() -> dict[str, str]:
    """Return the formats that ``export`` may write; only its package knows whether one from outside can be written."""
    return WRITTEN | _offered()


def format_named(name: str, known: dict[str, str]) -> Any:
    """Return what reads or writes a format: one of our modules, or what an installed package offers.

    Raises:
        ValueError: If it is not among the ``known``, with the nearest name, or if its package can't be used.
    """
    if name not in known:
        raise ValueError(f"format: unknown {name!r}{nearest(name, known)}")
    if name in READ or name in WRITTEN:
        return import_module(f"mmpeft.formats.{_ROOMS.get(name, 'papers')}.{_FILES.get(name, name)}")
    if name not in external_formats():
        raise ValueError(f"format: {name!r} of the installed package {known[name]} can't be used: a warning says why")
    return external_formats()[name]


@cache
def external_formats() -> dict[str, Foreign]:
    """Return the formats of installed packages; a broken one is left out, with a warning that names its package."""
    from mmpeft.formats.foreign import Foreign

    formats: dict[str, Foreign] = {}

    def take(name: str, offered: Any) -> None:
        if not isinstance(offered, Foreign) or offered.name != name:
            raise TypeError(f"{offered!r} is no mmpeft.formats.foreign.Foreign of this name")
        if name in READ or name in WRITTEN:
            raise ValueError(f"{name!r} is the name of a format of mmpeft")
        formats[name] = offered

    load_plugins(FORMATS, take)
    return formats


def _offered() -> dict[str, str]:
    return {name: package for name, package in sorted(offers(FORMATS).items()) if name not in READ | WRITTEN}
