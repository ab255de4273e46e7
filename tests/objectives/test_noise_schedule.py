"""Noise levels, targets and weights, against the formulas and against diffusers' schedulers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from mmpeft.objectives.denoising_settings import DenoisingSettings
from mmpeft.objectives.noise_schedule import NoiseSchedule, noise_schedule

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def scheduler(prediction: str = "epsilon") -> Any:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDPMScheduler(**betas, prediction_type=prediction)


def schedule(prediction: str = "epsilon", **settings: Any) -> NoiseSchedule:
    return noise_schedule(scheduler(prediction), DenoisingSettings(**settings))


def test_the_signal_to_noise_ratios_of_stable_diffusion() -> None:
    known = {0: 1175.44055, 1: 585.86218, 100: 8.45387, 250: 2.06553, 500: 0.38185, 750: 0.05951, 900: 0.01435}
    snr = schedule().snr
    for step, value in (known | {999: 0.00468}).items():
        assert float(snr[step]) == pytest.approx(value, rel=1e-3 if step >= 900 else 1e-4)


def test_min_snr_weights_of_each_prediction() -> None:
    settings = DenoisingSettings(min_snr=5)
    steps = torch.tensor([0, 100, 250, 500])
    weights = {name: schedule(name).weights(steps, settings) for name in PREDICTIONS}
    torch.testing.assert_close(weights["epsilon"], torch.tensor([0.00425, 0.59145, 1.0, 1.0]), rtol=0, atol=1e-5)
    known = torch.tensor([0.52888, 0.67379, 0.27633])
    torch.testing.assert_close(weights["v_prediction"][1:], known, rtol=0, atol=1e-5)
    snr = schedule().snr[steps].float()
    torch.testing.assert_close(weights["sample"], snr.clamp(max=5))
    torch.testing.assert_close(weights["epsilon"] * snr, weights["sample"])  # an error e of noise is e^2 / S of x_0
    torch.testing.assert_close(weights["v_prediction"] * (snr + 1), weights["sample"])


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_mixing_and_targets_are_those_of_diffusers(prediction: str) -> None:
    clean, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([3, 500, 999])
    own, theirs = schedule(prediction), scheduler(prediction)
    torch.testing.assert_close(own.mix(clean, noise, steps), theirs.add_noise(clean, noise, steps))
    expected = {"epsilon": noise, "v_prediction": theirs.get_velocity(clean, noise, steps), "sample": clean}
    torch.testing.assert_close(own.target(clean, noise, steps), expected[prediction])


def test_a_flow_has_the_levels_of_its_scheduler() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    own = noise_schedule(theirs, DenoisingSettings())
    torch.testing.assert_close(own.noise.float(), theirs.sigmas[:1000].flip(0))
    torch.testing.assert_close(own.times.float(), theirs.timesteps.flip(0))
    clean, noise = torch.randn(2, 2, 4, 2, 2)
    steps = torch.tensor([10, 900])
    mixed = own.mix(clean, noise, steps)
    sigma = own.noise[steps].float().view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed - sigma * own.target(clean, noise, steps), clean)


def test_weights_of_flow_matching() -> None:
    own, steps = noise_schedule(FlowMatchEulerDiscreteScheduler(), DenoisingSettings()), torch.tensor([499])
    assert float(own.weights(steps, DenoisingSettings(weighting="sigma_sqrt"))) == pytest.approx(4)
    assert float(own.weights(steps, DenoisingSettings(weighting="cosmap"))) == pytest.approx(4 / math.pi)
    assert float(own.weights(steps, DenoisingSettings())) == 1


def test_the_last_step_is_noise_alone_and_v_stays_finite() -> None:
    own = schedule("v_prediction", zero_terminal_snr=True)
    plain = schedule("v_prediction")
    assert own.signal[-1] == 0
    torch.testing.assert_close(own.signal[0], plain.signal[0])
    settings, last = DenoisingSettings(min_snr=5), torch.tensor([999])
    assert own.weights(last, settings) == 0
    clean, noise = torch.randn(2, 1, 4, 2, 2)
    torch.testing.assert_close(own.target(clean, noise, last), -clean)
    theirs = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    ).alphas_cumprod  # fmt: skip
    torch.testing.assert_close((own.signal**2).float(), theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("times", "density"),
    [
        ("uniform", lambda t: torch.ones_like(t)),
        ("cubic", lambda t: (1 - t).pow(-2 / 3) / 3),
        ("logit_normal", lambda t: torch.exp(-(torch.logit(t) ** 2) / 2) / (t * (1 - t)) / math.sqrt(2 * math.pi)),
    ],
)
def test_how_often_each_noise_level_comes(times: Any, density: Any) -> None:
    settings, own = DenoisingSettings(times=times), schedule()
    uniform = (torch.arange(100_000) + 0.5) / 100_000
    counts = torch.bincount(own.steps(uniform, settings) // 100, minlength=10) / len(uniform)
    fine = (torch.arange(100_000) + 0.5) / 100_000
    expected = density(fine).view(10, -1).mean(1) / 10
    torch.testing.assert_close(counts, expected, rtol=0.02, atol=2e-3)


def test_mode_prefers_the_middle_and_is_symmetric() -> None:
    settings, own = DenoisingSettings(times="mode"), schedule()
    uniform = (torch.arange(10_000) + 0.5) / 10_000
    counts = torch.bincount(own.steps(uniform, settings) // 200, minlength=5)
    assert counts[2] > counts[0] + 100
    torch.testing.assert_close(counts, counts.flip(0), rtol=0.01, atol=3)


@pytest.mark.parametrize(
    ("prediction", "settings", "message"),
    [
        ("epsilon", {"zero_terminal_snr": True}, "zero_terminal_snr: true with a model that predicts the noise"),
        ("epsilon", {"weighting": "cosmap"}, "loss.weighting: 'cosmap' is for flow matching"),
        ("flow", {"min_snr": 5}, r"loss.min_snr: 5 is for diffusion"),
        ("flow", {"zero_terminal_snr": True}, "a flow ends in noise alone anyway"),
    ],
)
def test_settings_that_make_no_sense(prediction: str, settings: Any, message: str) -> None:
    own = FlowMatchEulerDiscreteScheduler() if prediction == "flow" else scheduler(prediction)
    with pytest.raises(ValueError, match=message):
        noise_schedule(own, DenoisingSettings(**settings))


def test_more_than_all_cannot_be_dropped() -> None:
    with pytest.raises(ValueError, match=r"text: 0\.6, image: 0\.3 and both: 0\.2 are more than all"):
        DenoisingSettings(drop={"text": 0.6, "image": 0.3, "both": 0.2})
