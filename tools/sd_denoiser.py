"""The denoiser of `tiny/sd`: a UNet and a CLIP text encoder, trained together on the latents of drawn scenes."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
}
UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 64, 128),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 4,  # in diffusers, for this class: how many heads
    "norm_num_groups": 4,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""As in Stable Diffusion 1.5."""


class Denoiser(nn.Module):
    """What is trained: predicts the noise in latents (N, 4, 16, 16) at timesteps (N,) from token ids (N, L)."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        ends |= {"pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
        self.text = CLIPTextModel(CLIPTextConfig(**TEXT, **ends, max_position_embeddings=tokenizer.model_max_length))
        self.unet = UNet2DConditionModel(**UNET)

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the noise."""
        return self.unet(latents, timesteps, self.text(tokens)[0]).sample


@dataclass(frozen=True)
class Recipe:
    """How the denoiser is trained."""

    steps: int
    batch: int
    lr: float
    seed: int
    drop_captions: float = 0.1
    average: float = 0.998
    coarse_from: int = 2000
    """The step from which on noisy timesteps, where shapes are decided, come more often and weigh more."""

    def timesteps(self, step: int, random: torch.Generator) -> torch.Tensor:
        """Evenly from 0 to 999; later on half of them from 500 to 999."""
        anywhere = torch.randint(1000, (self.batch,), generator=random)
        noisy = torch.randint(500, 1000, (self.batch,), generator=random)
        choice = torch.rand(self.batch, generator=random) < 0.5
        return torch.where(choice, noisy, anywhere) if step >= self.coarse_from else anywhere

    def gamma(self, step: int) -> float:
        """The signal-to-noise ratio above which less noise counts less (min-SNR)."""
        return 5.0 if step < self.coarse_from else 1.0

    def learning_rate(self, step: int) -> float:
        """Warm up over 200 steps, stay, and fall to nothing along a cosine over the last 30 %."""
        end = min(1.0, max(0.0, (step - 0.7 * self.steps) / (0.3 * self.steps)))
        return self.lr * min((step + 1) / 200, (1 + math.cos(math.pi * end)) / 2)


@dataclass(frozen=True)
class Data:
    """Latents of N pictures by mean and deviation (N, 4, 16, 16), and token ids (N, phrasings, L) of their texts."""

    mean: torch.Tensor
    deviation: torch.Tensor
    tokens: torch.Tensor
    empty: torch.Tensor

    def batch(self, count: int, drop: float, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Pick latents and texts; a share of the texts is empty, for classifier-free guidance (Ho & Salimans, 2022)."""
        which = torch.randint(len(self.mean), (count,), generator=random)
        noise = torch.randn(count, *self.mean.shape[1:], generator=random)
        phrasing = torch.randint(self.tokens.shape[1], (count,), generator=random)
        tokens = self.tokens[which, phrasing]
        dropped = torch.rand(count, 1, generator=random) < drop
        return self.mean[which] + self.deviation[which] * noise, torch.where(dropped, self.empty, tokens)


def loss_of(model: Denoiser, scheduler: DDIMScheduler, data: Data, recipe: Recipe, step: int) -> torch.Tensor:
    """Squared error of the noise, weighted by min(SNR, gamma) / SNR (Hang et al., 2023)."""
    random = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    latents, tokens = data.batch(recipe.batch, recipe.drop_captions, random)
    timesteps = recipe.timesteps(step, random)
    noise = torch.randn(latents.shape, generator=random)
    output = model(scheduler.add_noise(latents, noise, timesteps), timesteps, tokens)
    kept = scheduler.alphas_cumprod[timesteps]
    ratio = kept / (1 - kept)
    return (ratio.clamp(max=recipe.gamma(step)) / ratio * (output - noise).square().mean((1, 2, 3))).mean()


def train_denoiser(tokenizer: CLIPTokenizer, data: Data, recipe: Recipe, checkpoint: Path) -> tuple[Denoiser, float]:
    """Train, or go on where the checkpoint is; return the average of the weights (EMA) and the seconds it took."""
    torch.manual_seed(recipe.seed)
    model = Denoiser(tokenizer)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    scheduler = DDIMScheduler(**SCHEDULER)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.99), weight_decay=0.01)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    first, seconds = _resume(checkpoint, parts)
    start, shown = time.perf_counter() - seconds, math.nan
    for step in range(first, recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate(step)
        loss = loss_of(model, scheduler, data, recipe, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        weight = 1 - min(recipe.average, (step + 1) / (step + 10))
        torch._foreach_lerp_([*average.parameters()], [value.detach() for value in model.parameters()], weight)
        shown = loss.item() if math.isnan(shown) else 0.99 * shown + 0.01 * loss.item()
        if step % 50 == 0:
            print(f"denoiser {step:6d} {time.perf_counter() - start:6.0f} s  loss {shown:.4f}", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == recipe.steps:
            _save(checkpoint, step + 1, time.perf_counter() - start, parts)
    return average, time.perf_counter() - start


def _save(path: Path, step: int, seconds: float, parts: dict[str, Any]) -> None:
    """Write a checkpoint, or none."""
    state = {name: part.state_dict() for name, part in parts.items()}
    torch.save(state | {"step": step, "seconds": seconds}, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def _resume(path: Path, parts: dict[str, Any]) -> tuple[int, float]:
    """Read the checkpoint, if there is one; return its step and the seconds spent so far."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"], state["seconds"]
