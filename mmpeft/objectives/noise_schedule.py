"""How much noise each step of a diffusion has, what is to be predicted of it, and how much each step counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmpeft.objectives.denoising_settings import DenoisingSettings

Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """``x_k = a_k x_0 + b_k e`` for the steps k, in order of growing noise; tensors of (steps,) in fp64, on the CPU.

    ``times`` are what the denoiser is told of each step.
    """

    signal: Tensor
    noise: Tensor
    times: Tensor
    prediction: Prediction

    @property
    def snr(self) -> Tensor:
        """Signal to noise: ``a^2 / b^2``."""
        return (self.signal / self.noise) ** 2

    def mix(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return noisy samples (batch, ...) of clean ones at these steps (batch,)."""
        a, b = self._factors(clean, steps)
        return a * clean + b * noise

    def target(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return what is to be predicted: ``e``, ``a e - b x_0``, ``x_0``, or in flow matching ``e - x_0``."""
        a, b = self._factors(clean, steps)
        targets = {"epsilon": noise, "v_prediction": a * noise - b * clean, "sample": clean, "flow": noise - clean}
        return targets[self.prediction]

    def weights(self, steps: Tensor, settings: DenoisingSettings) -> Tensor:
        """Return how much the error at these steps counts, in fp32.

        Min-SNR (Hang et al. 2023, arXiv:2303.09556) bounds the weight of the error of x_0 by gamma; as a weight of
        what is predicted, ``min(S, g) / S`` for noise, ``min(S, g) / (S + 1)`` for v and ``min(S, g)`` for x_0. In flow
        matching ``b^-2`` or ``2 / (pi (1 - 2 b + 2 b^2))`` (Esser et al. 2024, arXiv:2403.03206).
        """
        weights = torch.ones(len(steps), dtype=torch.float64)
        if settings.min_snr is not None:
            snr = self.snr[steps]
            below = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[self.prediction]
            weights = snr.clamp(max=settings.min_snr) / below
        sigma = self.noise[steps]
        if settings.weighting == "sigma_sqrt":
            weights = sigma**-2
        elif settings.weighting == "cosmap":
            weights = 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
        return weights.float()

    def steps(self, uniform: Tensor, settings: DenoisingSettings) -> Tensor:
        """Return the steps of numbers drawn evenly from [0, 1), such that each comes as often as configured."""
        count = len(self.times)
        return (_place(uniform.double(), settings) * count).long().clamp(0, count - 1)

    def _factors(self, like: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *(1,) * (like.ndim - 1))
        return self.signal[steps].to(like).view(shape), self.noise[steps].to(like).view(shape)


def _place(u: Tensor, settings: DenoisingSettings) -> Tensor:
    """Return places in [0, 1], 1 the noisiest, of evenly drawn u (SD3: Esser et al. 2024; cubic: Mou et al. 2023)."""
    if settings.times == "logit_normal":
        return (settings.mean + settings.std * torch.special.ndtri(u)).sigmoid()
    if settings.times == "mode":
        return 1 - u - settings.mode_scale * ((math.pi * u / 2).cos() ** 2 - 1 + u)
    return 1 - u**3 if settings.times == "cubic" else u


def noise_schedule(scheduler: Any, settings: DenoisingSettings) -> NoiseSchedule:
    """Return the schedule that a scheduler of diffusers trains with.

    Raises:
        ValueError: If the settings don't go with what is predicted.
    """
    made = _diffusion(scheduler, settings) if hasattr(scheduler, "alphas_cumprod") else _flow(scheduler)
    if made.prediction == "flow" and settings.min_snr is not None:
        raise ValueError(f"loss.min_snr: {settings.min_snr:g} is for diffusion, and this model learns a flow: null")
    if made.prediction == "flow" and settings.zero_terminal_snr:
        raise ValueError("loss.zero_terminal_snr: true is for diffusion; a flow ends in noise alone anyway")
    if made.prediction != "flow" and settings.weighting != "none":
        raise ValueError(f"loss.weighting: {settings.weighting!r} is for flow matching: use min_snr")
    if made.prediction == "epsilon" and made.signal[-1] == 0:
        raise ValueError(
            "loss.zero_terminal_snr: true with a model that predicts the noise: at the last step there is nothing else "
            "to see, so nothing is learned there and sampling divides by zero; it needs a model that predicts v"
        )
    return made


def _diffusion(scheduler: Any, settings: DenoisingSettings) -> NoiseSchedule:
    signal = scheduler.alphas_cumprod.detach().cpu().double().sqrt()
    if settings.zero_terminal_snr:
        signal = zero_terminal(signal)
    times = torch.arange(len(signal), dtype=torch.float64)
    return NoiseSchedule(signal, (1 - signal**2).sqrt(), times, scheduler.config.prediction_type)


def zero_terminal(signal: Tensor) -> Tensor:
    """Shift and scale factors of the signal: the last becomes 0, the first stays (Lin et al., arXiv:2305.08891)."""
    first, last = signal[0], signal[-1]
    return (signal - last) * first / (first - last)


def _flow(scheduler: Any) -> NoiseSchedule:
    """``x = (1 - s) x_0 + s e``, with s from 1/steps to 1, shifted to ``h s / (1 + (h - 1) s)`` as the model was."""
    count, config = int(scheduler.config.num_train_timesteps), scheduler.config
    sigma = torch.arange(1, count + 1, dtype=torch.float64) / count
    shift = 1.0 if config.get("use_dynamic_shifting") else float(config.get("shift", 1.0))
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    return NoiseSchedule(1 - sigma, sigma, sigma * count, "flow")
