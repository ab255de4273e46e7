"""A training step of LoRA on a ViT-S: mmpeft by level of memory, peft, full fine-tuning and the floor.

python benchmarks/train_vit.py            about 4 minutes; --write adds the table to benchmarks/RESULTS.md
python benchmarks/train_vit.py --quick    a small model and few rounds, 20 seconds
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training_arms import Subject
from training_steps import main


def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the cross-entropy of the labels."""
    return F.cross_entropy(model(batch["images"]).float(), batch["labels"])


def subject(quick: bool) -> Subject:
    """Return a ViT-S, or with ``quick`` two of its blocks."""
    depth, count = (2, 4) if quick else (12, 8)

    def make() -> nn.Module:
        model: Any = timm.create_model("vit_small_patch16_224", pretrained=False, depth=depth)
        nn.init.trunc_normal_(model.head.weight, std=0.02)
        return model

    made = torch.Generator().manual_seed(0)
    batch = {"images": torch.randn(count, 3, 224, 224, generator=made), "labels": torch.arange(count)}
    return Subject(
        f"ViT-S of {depth} blocks, {count} pictures of 224 pixels, LoRA of rank 8 on qkv, proj, fc1 and fc2",
        make,
        batch,
        loss,
        targets=("attn.qkv", "attn.out", "mlp.up", "mlp.down"),
        pattern=r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))",
        first=("blocks.0.attn.qkv",),
        checkpoint=lambda model: model.set_grad_checkpointing(),
    )


if __name__ == "__main__":
    main("train_vit", subject, ("timm",), rounds=5, doc=__doc__)
