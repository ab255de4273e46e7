"""One step of each of diffusers' training examples: what benchmarks/diffusion.py measures mmpeft against.

They do what examples/text_to_image/train_text_to_image_lora.py, examples/controlnet/train_controlnet.py and
examples/custom_diffusion/train_custom_diffusion.py of diffusers 0.42 do, by the public interfaces those use; written
here, not copied. Latents and encoded texts are ready, on both sides of the comparison.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import ControlNetModel, DDPMScheduler
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from peft import LoraConfig
from torch import Tensor, nn

import mmpeft

Pairs = Iterator[tuple[Tensor, nn.Parameter]]
"""Weights of ours, each with the diffusers' one that is the same."""


@dataclass(frozen=True)
class Drawn:
    """What a denoiser is trained on: noisy latents, their times, texts, control images, and the noise."""

    noisy: Tensor
    times: Tensor
    hidden: Tensor
    control: Tensor
    target: Tensor


class Loop(nn.Module):
    """A UNet, frozen in the working precision, with something that is trained: `build` adds it and returns it."""

    def __init__(self, unet: Any, scheduler: Any, accelerator: Accelerator, dtype: torch.dtype) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False).to(dtype)
        self.scheduler = DDPMScheduler.from_config(scheduler.config)
        self.accelerator, self.dtype = accelerator, dtype
        self.trained = [parameter for parameter in self.build() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=1e-2)
        self.optimizer = accelerator.prepare(self.optimizer)

    def build(self) -> Iterator[nn.Parameter]:
        """Add what is trained, and return its parameters."""
        raise NotImplementedError

    def pairs(self, adapters: Any) -> Pairs:
        """Return the adapter's weights with mine."""
        raise NotImplementedError

    def predicted(self, drawn: Drawn) -> Tensor:
        """Return what the denoiser says."""
        found: Tensor = self.unet(drawn.noisy, drawn.times, drawn.hidden, return_dict=False)[0]
        return found

    def forward(self, drawn: Drawn) -> Tensor:
        """Return the loss."""
        return F.mse_loss(self.predicted(drawn).float(), drawn.target.float(), reduction="mean")

    def draw(self, latents: Tensor, hidden: Tensor, control: Tensor) -> Drawn:
        """Add noise to latents."""
        noise = torch.randn_like(latents)
        times = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(latents),), device=latents.device)
        noisy = self.scheduler.add_noise(latents.float(), noise.float(), times).to(self.dtype)
        return Drawn(noisy, times, hidden, control, noise)

    def step(self, latents: Tensor, hidden: Tensor, control: Tensor) -> None:
        """Make an optimizer step."""
        loss = self(self.draw(latents, hidden, control))
        self.accelerator.gather(loss.repeat(len(latents))).mean().item()
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.detach().item()


class LoRALoop(Loop):
    """peft's LoRA on the projections of all attentions; accelerate puts autocast around the UNet."""

    def build(self) -> Iterator[nn.Parameter]:
        targets = ["to_k", "to_q", "to_v", "to_out.0"]
        self.unet.add_adapter(LoraConfig(r=8, lora_alpha=8, init_lora_weights="gaussian", target_modules=targets))
        self.unet = self.accelerator.prepare(self.unet)
        return iter(self.unet.parameters())

    def pairs(self, adapters: Any) -> Pairs:
        for key, value in adapters.named_parameters():
            site, _, factor = key.removeprefix("main.unet.").rpartition(".lora.")
            yield value, self.unet.get_parameter(f"{site}.{factor}.default.weight")


class ControlNetLoop(Loop):
    """diffusers' ControlNet, trained in fp32 under autocast; the UNet runs without."""

    def build(self) -> Iterator[nn.Parameter]:
        self.net: Any = ControlNetModel.from_unet(self.unet, conditioning_embedding_out_channels=WIDTHS)
        self.net = self.accelerator.prepare(self.net.float().requires_grad_(True))
        return iter(self.net.parameters())

    def predicted(self, drawn: Drawn) -> Tensor:
        own = (drawn.noisy, drawn.times, drawn.hidden)
        down, middle = self.net(*own, controlnet_cond=drawn.control, return_dict=False)
        residuals = {"down_block_additional_residuals": [state.to(self.dtype) for state in down]}
        residuals["mid_block_additional_residual"] = middle.to(self.dtype)
        found: Tensor = self.unet(*own, **residuals, return_dict=False)[0]
        return found

    def pairs(self, adapters: Any) -> Pairs:
        (edit,), net = adapters._edits("main"), self.net
        modules = [(getattr(edit.encoder, name), getattr(net, name)) for name in COPIED]
        modules += [(edit.hint, net.controlnet_cond_embedding)]
        modules += zip(edit.zeros, [*net.controlnet_down_blocks, net.controlnet_mid_block], strict=True)
        for ours, theirs in modules:
            yield from zip(ours.parameters(), theirs.parameters(), strict=True)


class CustomDiffusionLoop(Loop):
    """Every attention of the UNet gets diffusers' processor, which at the text holds keys and values of its own."""

    def build(self) -> Iterator[nn.Parameter]:
        processors = {}
        for name in self.unet.attn_processors:
            attention = self.unet.get_submodule(name.removesuffix(".processor"))
            text = None if name.endswith("attn1.processor") else self.unet.config.cross_attention_dim
            size = {"hidden_size": attention.to_q.out_features, "cross_attention_dim": text}
            made = CustomDiffusionAttnProcessor2_0(train_kv=text is not None, train_q_out=False, **size)
            if text is not None:
                made.to_k_custom_diffusion.weight.data.copy_(attention.to_k.weight)
                made.to_v_custom_diffusion.weight.data.copy_(attention.to_v.weight)
            processors[name] = made
        self.unet.set_attn_processor(dict(processors))
        return (parameter for own in processors.values() for parameter in own.parameters())

    def pairs(self, adapters: Any) -> Pairs:
        for key, value in adapters.named_parameters():
            attention, _, rest = key.removeprefix("main.unet.").rpartition(".attn2.")
            name = rest.split(".")[0]
            yield value, self.unet.get_parameter(f"{attention}.attn2.processor.{name}_custom_diffusion.weight")


COPIED = ("conv_in", "time_embedding", "down_blocks", "mid_block")
WIDTHS = (16, 32)
"""Of the encoder of control images: one halving, as the embedded autoencoder has."""
METHODS: dict[str, tuple[mmpeft.Method, type[Loop], str]] = {
    "LoRA": (mmpeft.LoRA(rank=8, targets=("attn.*", "cross.*"), towers="unet"), LoRALoop, "attn1.to_q"),
    "ControlNet": (mmpeft.ControlNet(widths=WIDTHS), ControlNetLoop, "mid_block"),
    "Custom Diffusion": (mmpeft.CustomDiffusion(), CustomDiffusionLoop, "attn2.to_k"),
}
"""By name: ours, theirs, and the first module of the UNet whose output depends on what is trained."""
