"""Denoising: the loss of diffusion and flow-matching models, from noise that each sample brings along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.nn.parallel import DistributedDataParallel

from mmpeft.data.tensor_store import TensorStore, content_key
from mmpeft.heads.denoising import Denoiser
from mmpeft.objectives.base import Batch, Objective, at_least_single
from mmpeft.objectives.denoising_settings import DenoisingSettings
from mmpeft.objectives.noise_schedule import NoiseSchedule

EVALUATED = 4
"""Noise levels at which each sample of an evaluation is looked at."""


class Denoising(Objective):
    """Squared error of what a `Denoiser` predicts, mean over an image, weighed by its noise level.

    ``L = sum_i w(k_i) mean |f(x_k) - target|^2``, see `NoiseSchedule`. All that is random of a sample (its place in the
    latent distribution, noise, noise level, what is dropped) comes from its own ``draw``, so neither the other samples
    of the batch nor an interruption change it. Class pictures (prior preservation: ``class_image`` ...) go through the
    same pass: ``L_concept + prior L_class``, each with its own weights. Where a ``mask`` is given the error counts
    inside only: ``sum(m |.|^2) / sum(m)``, with m one number per place, as Custom Diffusion has it: larger by the
    number of latent channels than a mean, which the class pictures' is. Score: ``loss``, without class pictures or
    drops, at four evenly spread noise levels with the same noise each time.

    ``latents`` and ``text`` keep what the frozen encoders made, by sample id and by text.
    """

    score_names = ("loss",)

    summed: Tensor
    """Summed loss and number of samples of the evaluation so far, on this process."""

    def __init__(
        self,
        schedule: NoiseSchedule,
        settings: DenoisingSettings,
        *,
        latents: TensorStore | None = None,
        text: TensorStore | None = None,
    ) -> None:
        super().__init__()
        self.schedule, self.settings, self.latents, self.texts = schedule, settings, latents, text
        self.register_buffer("summed", torch.zeros(2), persistent=False)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss; where there are class pictures, their part of it as ``prior``."""
        rows = joined(batch)
        generators = [torch.Generator().manual_seed(draw) for draw in rows["draw"].tolist()]
        uniform = torch.stack([torch.rand((), generator=generator) for generator in generators])
        errors = self._errors(model, rows, generators, uniform, dropping=True)
        plain, prior = errors[: len(batch["id"])].sum(), errors[len(batch["id"]) :].sum() * self.settings.prior
        if len(errors) == len(batch["id"]):
            return plain, {}
        return plain + prior, {"prior": prior.detach()}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch to the mean loss."""
        generators = [torch.Generator().manual_seed(draw) for draw in batch["draw"].tolist()]
        for part in range(EVALUATED):
            inside = torch.stack([torch.rand((), generator=generator) for generator in generators])
            errors = self._errors(model, batch, generators, (part + inside) / EVALUATED, dropping=False)
            self.summed += torch.stack([errors.sum() / EVALUATED, errors.new_tensor(len(errors) / EVALUATED)])

    def compute(self) -> dict[str, float]:
        """Return the mean ``loss``."""
        total, count = reduce(self.summed.clone(), reduction="sum").tolist()
        self.summed.zero_()
        return {"loss": total / count}

    def _errors(
        self, model: nn.Module, rows: Batch, generators: list[torch.Generator], uniform: Tensor, *, dropping: bool
    ) -> Tensor:
        """Return each sample's weighed loss (samples,)."""
        inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
        clean = self._clean(inner, rows, generators)
        noise = self._noise(clean, generators)
        steps = self.schedule.steps(uniform, self.settings)
        text, image = self._dropped(generators) if dropping else ([False] * len(clean),) * 2
        predicted = model(
            self.schedule.mix(clean, noise, steps),
            self.schedule.times[steps].to(clean),
            self._text(inner, ["" if drop else prompt for drop, prompt in zip(text, rows["prompt"], strict=True)]),
            rows["sizes"],
            inner.conditions(rows, torch.tensor(image, device=clean.device)),
        )
        squared = (at_least_single(predicted) - self.schedule.target(clean, noise, steps)) ** 2
        return _means(squared, rows.get("mask")) * self.schedule.weights(steps, self.settings).to(clean)

    def _clean(self, model: Denoiser, rows: Batch, generators: list[torch.Generator]) -> Tensor:
        """Return the latents: each a draw from what the autoencoder says of its picture."""
        if self.latents is None:
            moments_of_all = model.moments(rows["image"], rows["id"])
        else:
            each = (self._kept(model, image, name) for image, name in zip(rows["image"], rows["id"], strict=True))
            moments_of_all = torch.cat([moments.to(rows["image"].device) for moments in each])
        mean, std = moments_of_all.chunk(2, 1)
        return model.scaled(mean + std * _normal(mean, generators))

    def _kept(self, model: Denoiser, image: Tensor, name: str) -> Tensor:
        """Return a picture's moments; encoded by itself, they don't depend on who else was in the batch."""
        assert self.latents is not None
        key = f"{name}/{content_key(image)}"
        return self.latents.get(key, lambda: {"moments": model.moments(image[None], [name])})["moments"]

    def _noise(self, clean: Tensor, generators: list[torch.Generator]) -> Tensor:
        noise = _normal(clean, generators)
        if self.settings.noise_offset:
            noise = noise + self.settings.noise_offset * _normal(clean[..., :1, :1], generators)
        return noise

    def _dropped(self, generators: list[torch.Generator]) -> tuple[list[bool], list[bool]]:
        """Return for each sample whether its text, and whether its image prompt, is left out."""
        drop = self.settings.drop
        draws = [float(torch.rand((), generator=generator)) for generator in generators]
        both, text, image = drop.both, drop.both + drop.text, drop.both + drop.text + drop.image
        return [draw < text for draw in draws], [draw < both or text <= draw < image for draw in draws]

    def _text(self, model: Denoiser, prompts: Sequence[str]) -> list[str] | dict[str, Tensor]:
        """Return prompts for the model to encode in its forward pass, or what is kept of a frozen encoder."""
        if self.texts is None:
            return [*prompts]
        encoded = [self.texts.get(prompt, lambda text=prompt: model.encoded([text])) for prompt in prompts]  # type: ignore[misc]
        device = next(model.parameters()).device
        return {name: torch.cat([one[name] for one in encoded]).to(device) for name in encoded[0]}


def joined(batch: Batch) -> Batch:
    """Return a batch with its class pictures, where there are any, behind the others."""
    if "class_image" not in batch:
        return batch
    pairs = {name: (batch[name], batch[f"class_{name}"]) for name in batch if f"class_{name}" in batch}
    rows: Batch = {
        name: torch.cat([first, other]) if isinstance(first, Tensor) else [*first, *other]
        for name, (first, other) in pairs.items()
    }
    return rows | ({"mask": batch["mask"]} if "mask" in batch else {})


def _means(squared: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over each sample (batch, channels, height, width); of the first ones, inside their masks."""
    if mask is None:
        return squared.flatten(1).mean(1)
    masked, plain = squared[: len(mask)], squared[len(mask) :]
    height, width = squared.shape[-2:]
    inside = (adaptive_avg_pool2d(mask[:, None].float(), (height, width)) > 0.99).to(squared)
    inside_means = (masked * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
    return torch.cat([inside_means, plain.flatten(1).mean(1)])


def _normal(like: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Return normal noise of a tensor's shape, each sample's from its own generator, the same on every device."""
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like)
