"""A training step of LoRA on a UNet of Stable Diffusion: mmpeft by level of memory, peft, full fine-tuning, the floor.

python benchmarks/train_unet.py            about 4 minutes; --write adds the table to benchmarks/RESULTS.md
python benchmarks/train_unet.py --quick    a small model and few rounds, 20 seconds
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from training_arms import Subject
from training_steps import main

TEXT = 256


def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the squared error of the noise."""
    predicted = model(batch["noisy"], batch["times"], batch["text"], return_dict=False)[0]
    return F.mse_loss(predicted.float(), batch["noise"].float())


def subject(quick: bool) -> Subject:
    """Return Stable Diffusion 1's UNet in a quarter of its widths, or with ``quick`` in an eighth and half as deep."""
    widths, places, depth = ((40, 80, 160, 160), 16, 1) if quick else ((80, 160, 320, 320), 32, 2)
    count = 2

    def make() -> nn.Module:
        size = {"block_out_channels": widths, "cross_attention_dim": TEXT, "norm_num_groups": 8}
        return UNet2DConditionModel(sample_size=places, layers_per_block=depth, **size)

    made = torch.Generator().manual_seed(0)
    batch = {
        "noisy": torch.randn(count, 4, places, places, generator=made),
        "noise": torch.randn(count, 4, places, places, generator=made),
        "times": torch.arange(count) * 100,
        "text": torch.randn(count, 77, TEXT, generator=made),
    }
    layers = r"attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2)"
    return Subject(
        f"Stable Diffusion's UNet of widths {widths}, {count} latents of {places} x {places}, LoRA of rank 8 on all "
        "linear layers of the transformer blocks",
        make,
        batch,
        loss,
        targets=("attn.*", "cross.*", "mlp.gate_up", "mlp.down"),
        pattern=rf".*transformer_blocks\.\d+\.({layers})",
        first=("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",),
        checkpoint=lambda model: model.enable_gradient_checkpointing(),
    )


if __name__ == "__main__":
    main("train_unet", subject, ("diffusers",), rounds=5, doc=__doc__)
