"""Print the table of methods by models, or with --write put it into the README between its markers.

python tools/method_table.py --write

A cell is made by planning the method on the real architecture, built on the meta device.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import timm
import torch
import transformers
from torch import nn

import mmpeft
from mmpeft.heads.zero_shot import ZeroShotClassifier
from mmpeft.injection.planning import Anatomies, anatomies_of, plan

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- table of methods: tools/method_table.py -->", "<!-- end of table -->"
MODELS = {
    "ViT, DeiT": "vit_base_patch16_224",
    "DINOv2": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
    "EVA-02": "eva02_base_patch14_224",
    "BEiT": "beit_base_patch16_224",
    "Swin": "swin_tiny_patch4_window7_224",
    "Swin v2": "swinv2_tiny_window8_256",
    "ConvNeXt": "convnext_tiny",
}
DENOISERS = {
    "UNet (diffusers)": "UNet2DConditionModel",
    "SD3": "SD3Transformer2DModel",
    "PixArt": "PixArtTransformer2DModel",
}
LANGUAGE = {
    "Llama, Qwen, Mistral, Gemma": "LlamaForCausalLM",
    "GPT-2": "GPT2LMHeadModel",
    "GPT-NeoX": "GPTNeoXForCausalLM",
    "Mixtral": "MixtralForCausalLM",
    "BERT": "BertForSequenceClassification",
    "T5": "T5ForConditionalGeneration",
}
CLIP = {"open_clip": "ViT-B-32", "CLIP (transformers)": "CLIP", "SigLIP (transformers)": "Siglip"}


OPTIONS: dict[str, dict[str, Any]] = {"textual_inversion": {"ids": (60_000,)}}
"""What a method needs to be told where there is no pipeline with a tokenizer."""
OF_OTHERS = {"adapter_fusion"}
"""Methods that need other adapters in the model, where these have their sites."""


def models() -> dict[str, nn.Module]:
    """Return one model per column, on the meta device; the last is a torch module that no reader knows.

    Models of text and images stand there as the zero-shot classifiers that ``mmpeft.zero_shot`` makes of them.
    """
    with torch.device("meta"):
        found = {title: timm.create_model(name, num_classes=10) for title, name in MODELS.items()}
        found |= {title: _clip(title, name) for title, name in CLIP.items()}
        found |= {title: _denoiser(name) for title, name in DENOISERS.items()}
        found |= {title: _language(name) for title, name in LANGUAGE.items()}
        block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        return found | {"any `nn.Module`": nn.Sequential(block, nn.Sequential(*block))}


def _clip(title: str, name: str) -> nn.Module:
    if title == "open_clip":
        backbone = mmpeft.load_model(f"open_clip/{name}", device="meta")
    else:
        backbone = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")())
    tokenizer = partial(_tokenize, 64 if name == "Siglip" else 77)
    return ZeroShotClassifier(backbone, ["cat", "dog"], ["a photo of a {}."], tokenizer)


def _denoiser(name: str) -> nn.Module:
    options = {"cross_attention_dim": 768} if name.startswith("UNet") else {"num_layers": 2}
    return getattr(diffusers, name)(**options)


def _language(name: str) -> nn.Module:
    cls = getattr(transformers, name)
    return cls(cls.config_class(num_hidden_layers=2))


def _tokenize(length: int, texts: list[str]) -> torch.Tensor:
    """Return ids of as many words, between a start and an end."""
    rows = [[1, *([2] * len(text.split())), 3] for text in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows], device="cpu")


def works(method: mmpeft.Method, model: Anatomies) -> bool:
    """Whether the method finds its sites in the model."""
    try:
        return any(adapter.places for adapter in plan(model, [method]).values())
    except ValueError:
        return False


def table() -> str:
    """Return the table as markdown."""
    columns = {title: anatomies_of(model) for title, model in models().items()}
    lines = ["| method | " + " | ".join(columns) + " |", "|---" + "|:-:" * len(columns) + "|"]
    for name, cls in mmpeft.methods().items():
        if name in OF_OTHERS or cls.package() is not None:
            continue
        method = cls(**OPTIONS.get(name, {}))
        cells = ["✓" if works(method, model) else "-" for model in columns.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it into the README."""
    if "--write" not in sys.argv:
        print(table())
        return
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
