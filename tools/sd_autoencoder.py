"""The autoencoder of `tiny/sd`: pictures of 32 x 32 pixels to latents of 16 x 16 x 4, trained on drawn scenes."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.nn.functional import l1_loss, mse_loss

ARCHITECTURE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "mid_block_add_attention": False,
    "latent_channels": 4,
    "norm_num_groups": 2,
    "sample_size": 32,
    "scaling_factor": 1.0,
}
KL_WEIGHT = 1e-3


def train_autoencoder(
    pixels: torch.Tensor, steps: int, batch: int, lr: float, work: Path
) -> tuple[AutoencoderKL, float]:
    """Train on pictures (N, 3, 32, 32) uint8: L1 + squared error + a little KL; checkpointed every 200 steps.

    Returns:
        The autoencoder, and the seconds it took.
    """
    torch.manual_seed(1)
    model = AutoencoderKL(**ARCHITECTURE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    first, seconds = 0, 0.0
    checkpoint = work / "autoencoder.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, seconds = state["step"], state["seconds"]
    start, shown = time.perf_counter() - seconds, 0.0
    for step in range(first, steps):
        random = torch.Generator().manual_seed(step)
        pictures = pixels[torch.randint(len(pixels), (batch,), generator=random)].float() / 127.5 - 1
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / 50, (1 + math.cos(math.pi * step / steps)) / 2 + 0.01)
        latents = model.encode(pictures).latent_dist
        output = model.decode(latents.sample()).sample
        error = l1_loss(output, pictures) + mse_loss(output, pictures)
        loss = error + KL_WEIGHT * latents.kl().mean() / latents.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        shown = error.item() if step == first else 0.98 * shown + 0.02 * error.item()
        if step % 50 == 0:
            seconds, divergence = time.perf_counter() - start, latents.kl().mean().item()
            print(f"autoencoder {step:6d} {seconds:5.0f} s  error {shown:.4f}  kl {divergence:.0f}", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            state |= {"seconds": time.perf_counter() - start}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)
    return model.eval(), time.perf_counter() - start


@torch.no_grad()
def encode(model: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and standard deviations (N, 4, 16, 16) of the latents of pictures (N, 3, 32, 32) uint8."""
    parts = [model.encode(part.float() / 127.5 - 1).latent_dist for part in pixels.split(256)]
    return torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])


@torch.no_grad()
def whiten(model: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Scale and shift each latent channel to mean 0 and deviation 1, inside the 1 x 1 convolutions around the latents.

    The reconstructions stay the same; diffusion starts from the distribution that it wants, with scaling_factor 1.
    """
    means, _ = encode(model, pixels)
    mean, deviation = means.mean((0, 2, 3)), means.std((0, 2, 3))
    inner, outer = model.quant_conv, model.post_quant_conv
    assert inner is not None and outer is not None
    outer.bias += outer.weight[:, :, 0, 0] @ mean
    outer.weight *= deviation.view(1, -1, 1, 1)
    channels = len(mean)
    inner.bias[:channels] = (inner.bias[:channels] - mean) / deviation
    inner.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    inner.bias[channels:] -= 2 * deviation.log()
