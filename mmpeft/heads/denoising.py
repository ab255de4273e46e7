"""A diffusion pipeline as one module: what training, evaluation and pictures on the way call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.edits import ControlBranch, ControlImage, FeatureMaps, ImagePrompt, ImageTokens
from mmpeft.handle.adapters import Adapters, adapters
from mmpeft.heads.diffusion_families import Text, family_of
from mmpeft.heads.image_encoder import ImageEncoder
from mmpeft.injection.pipelines import modules_of

TAKERS: dict[str, tuple[type, ...]] = {"control": (ControlBranch, FeatureMaps), "reference": (ImageTokens,)}
"""What edits take, by the name that it has in a batch."""


class Denoiser(nn.Module):
    """The modules of a diffusers pipeline, under their own names; ``pipeline`` is the same modules at work.

    Autoencoder and ``reference`` (the encoder of image prompts) run in fp32 whatever the precision: in fp16 the
    autoencoder of SDXL overflows to NaN, which shows as black pictures.
    """

    def __init__(self, pipeline: Any, reference: ImageEncoder | None = None) -> None:
        super().__init__()
        self.family = family_of(pipeline)
        self.pipeline = pipeline
        for label, module in modules_of(pipeline).items():
            self.add_module(label, module)
        self.reference = reference
        self.autoencoder = [pipeline.vae.float()]
        pipeline.set_progress_bar_config(disable=True)

    @property
    def adapters(self) -> Adapters:
        """The handle on the pipeline's adapters."""
        return adapters(self.pipeline)

    @property
    def denoiser(self) -> nn.Module:
        """The UNet or the transformer."""
        return self.get_submodule(self.family.denoiser)

    @property
    def factor(self) -> int:
        """Pixels per place of the latents, in each direction."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def resolution(self) -> int:
        """Height and width in pixels that the pipeline draws unless told otherwise."""
        config: Any = self.denoiser.config
        return int(getattr(self.pipeline, "default_sample_size", None) or config.sample_size) * self.factor

    def train(self, mode: bool = True) -> Denoiser:
        """Put the modules that train in training mode; frozen ones stay as they are used, without dropout."""
        super().train(False)
        self.training = mode
        for label, tree in self.adapters.trees.items():
            if any(parameter.requires_grad for parameter in tree.parameters()):
                self.adapters.modules[label].train(mode)
        return self

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        text: list[str] | Text,
        sizes: Tensor,
        conditions: Mapping[str, Tensor],
    ) -> Tensor:
        """Return what the denoiser says of latents (batch, channels, height, width).

        Args:
            noisy: Latents with noise.
            times: What the scheduler calls the noise level (batch,).
            text: Prompts, or what `encoded` made of them.
            sizes: Original height and width, top and left of the cut, height and width of the picture (batch, 6).
            conditions: What adapters are given, by their names.
        """
        encoded = self.encoded(text) if isinstance(text, list) else text
        weight = next(self.denoiser.parameters())
        with self.adapters.given(conditions):
            return self.family.predict(self.pipeline, noisy.to(weight.dtype), times, encoded, sizes)

    def encoded(self, prompts: Sequence[str]) -> Text:
        """Return what the text encoders make of prompts: tensors with the batch in front."""
        return self.family.encode(self.pipeline, [*prompts])

    @torch.no_grad()
    def moments(self, images: Tensor, names: Sequence[str]) -> Tensor:
        """Return mean and deviation (batch, 2 x channels, ...) of the latents of images in [-1, 1].

        Raises:
            ValueError: If they are not finite; it names the samples.
        """
        (vae,) = self.autoencoder
        with torch.autocast(images.device.type, enabled=False):
            latents = vae.encode(images.float()).latent_dist
        moments = torch.cat([latents.mean, latents.std], 1)
        wrong = [name for name, sample in zip(names, moments, strict=True) if not sample.isfinite().all()]
        if wrong:
            raise ValueError(
                f"the autoencoder makes NaN or infinity of {', '.join(wrong)}: broken weights or pictures?"
            )
        return moments

    def scaled(self, latents: Tensor) -> Tensor:
        """Return the autoencoder's latents as the denoiser knows them."""
        config = self.pipeline.vae.config
        scaled: Tensor = (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        return scaled

    @torch.no_grad()
    def decoded(self, latents: Tensor) -> Tensor:
        """Return pictures (batch, 3, height, width) in [0, 1]; what is NaN stays it."""
        (vae,) = self.autoencoder
        config = vae.config
        unscaled = latents.float() / config.scaling_factor + (config.get("shift_factor") or 0.0)
        with torch.autocast(latents.device.type, enabled=False):
            return (vae.decode(unscaled).sample / 2 + 0.5).clamp(0, 1)

    def takers(self, kind: str) -> list[str]:
        """Return the active adapters that take a ``control`` image, or the features of a ``reference``."""
        handle = self.adapters
        return [name for name in handle.active if any(isinstance(e, TAKERS[kind]) for e in handle._edits(name))]

    def conditions(self, batch: Mapping[str, Any], dropped: Tensor | None = None) -> dict[str, Tensor]:
        """Return what the adapters take of a batch, by their names; ``dropped`` marks samples without image prompt."""
        controlled, prompted = self.takers("control"), self.takers("reference")
        taken = dict.fromkeys(controlled, batch["control"]) if controlled else {}
        return taken | (dict.fromkeys(prompted, self.features(batch["reference"], dropped)) if prompted else {})

    def features(self, images: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Return the features of image prompts; of dropped ones zeros, or those of zeros where positions are used."""
        assert self.reference is not None
        if dropped is None:
            dropped = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        if self.reference.positions:
            images = images.masked_fill(dropped[:, None, None, None], 0)
        with torch.autocast(images.device.type, enabled=False):
            features: Tensor = self.reference(images)
        return features if self.reference.positions else features.masked_fill(dropped[:, None], 0)

    def nothing(self) -> Tensor | None:
        """Return the features that stand for no image prompt; None for zeros."""
        return None if self.reference is None else self.reference.nothing()

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        conditions: Mapping[str, Tensor | ImagePrompt | ControlImage],
        *,
        steps: int,
        guidance: float,
        size: tuple[int, int],
        negative: str = "",
    ) -> Tensor:
        """Return a picture of each prompt, (prompts, 3, height, width) in [0, 1], each from the noise of its own seed.

        ``conditions`` are what `conditions` returns, or an `ImagePrompt`, or a `ControlImage`. Under guidance the half
        without text has no image prompt either.
        """
        pipeline, guided = self.pipeline, guidance > 1 and self.family.negative
        given = dict(conditions)
        for name in self.takers("reference") if guided else ():
            prompt: Any = given[name]
            if not isinstance(prompt, ImagePrompt):
                prompt = ImagePrompt(features=prompt, nothing=self.nothing())
            given[name] = prompt.guided()
        with self.adapters.given(given):
            latents = pipeline(
                [*prompts],
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=size[0],
                width=size[1],
                output_type="latent",
                **self.family.options,
                **({"negative_prompt": [negative] * len(prompts)} if guided and negative else {}),
            ).images
        return self.decoded(self.family.unpack(pipeline, latents, size))
