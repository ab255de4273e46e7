"""A training step of LoRA on both towers of CLIP: mmpeft by level of memory, peft, full fine-tuning and the floor.

python benchmarks/train_clip.py            about 4 minutes; --write adds the table to benchmarks/RESULTS.md
python benchmarks/train_clip.py --quick    a small model and few rounds, 20 seconds
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn
from training_arms import Subject
from training_steps import main

WORDS = 2000


def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the contrastive loss of pictures and their texts."""
    images, texts, scale = model(batch["images"], batch["texts"])
    logits = (scale * images @ texts.T).float()
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def peft_path(path: str) -> str:
    """Return where peft keeps the factors of a layer: those of attention's input sit at the attention itself."""
    return path.replace(".attn.in_proj", ".attn").replace(".attn.out_proj", ".attn.base_layer.out_proj")


def subject(quick: bool) -> Subject:
    """Return a ViT-B-32 of half the widths, or with ``quick`` two blocks of each tower."""
    depth, count = (2, 4) if quick else (12, 16)

    def make() -> nn.Module:
        vision = {"image_size": 224, "patch_size": 32, "head_width": 64, "width": 384, "layers": depth}
        text = {"context_length": 77, "vocab_size": WORDS, "heads": 4, "width": 256, "layers": depth}
        return CLIP(256, vision, text)

    made = torch.Generator().manual_seed(0)
    batch = {
        "images": torch.randn(count, 3, 224, 224, generator=made),
        "texts": torch.randint(WORDS, (count, 77), generator=made),
    }
    return Subject(
        f"open_clip's ViT-B-32 of half the widths and {depth} blocks per tower, {count} pictures of 224 pixels with "
        "texts of 77 tokens, LoRA of rank 8 on in_proj, out_proj, c_fc and c_proj",
        make,
        batch,
        loss,
        targets=("attn.qkv", "attn.out", "mlp.up", "mlp.down"),
        pattern=r".*resblocks\.\d+\.(attn|mlp\.(c_fc|c_proj))",
        first=("visual.transformer.resblocks.0.ln_1", "transformer.resblocks.0.ln_1"),
        checkpoint=lambda model: model.set_grad_checkpointing(),
        peft_path=peft_path,
        peft_doubles=".attn.out_proj.",
    )


if __name__ == "__main__":
    main("train_clip", subject, ("open_clip_torch",), rounds=5, doc=__doc__)
