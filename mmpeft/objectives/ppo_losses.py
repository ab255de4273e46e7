"""The formulas of PPO; all tensors are (answers, tokens), and ``mask`` marks the tokens that were written."""

from __future__ import annotations

import torch
from torch import Tensor

from mmpeft.objectives.ppo_settings import PPOSettings


def divergences(scores: Tensor, reference: Tensor, estimator: str) -> Tensor:
    """Return an estimate of KL(policy | reference) at each token from its log-probabilities by both (Schulman 2020)."""
    ratio = reference - scores
    return -ratio if estimator == "k1" else torch.expm1(ratio) - ratio


def token_rewards(divergence: Tensor, rewards: Tensor, mask: Tensor, kl: float) -> Tensor:
    """Return ``-kl d_t`` for each token of the mask, and at the last one of an answer its reward (answers,) too."""
    last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(1)
    return (-kl * divergence * mask).scatter_add(1, last[:, None], rewards[:, None].to(divergence))


def advantages(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, smoothing: float) -> Tensor:
    """Return ``A_t = d_t + g l A_{t+1}`` with ``d_t = r_t + g V_{t+1} - V_t``; behind an answer both are 0."""
    values, gains = values * mask, torch.zeros_like(values)
    ahead = value_ahead = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + discount * value_ahead - values[:, t]
        ahead = (delta + discount * smoothing * ahead) * mask[:, t]
        value_ahead, gains[:, t] = values[:, t], ahead
    return gains


def whitened(values: Tensor, mask: Tensor, *, keep_mean: bool = False) -> Tensor:
    """Return values with variance 1, of a sample (n - 1), over the tokens of the mask; with mean 0 or the mean kept."""
    count = mask.sum()
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / (count - 1).clamp(min=1)
    return ((values - mean) * (variance + 1e-8).rsqrt() + keep_mean * mean) * mask


def with_one_more(mask: Tensor) -> Tensor:
    """Return the mask of the tokens that were written and of the one behind an answer, where there is one."""
    return torch.cat([torch.ones_like(mask[:, :1]), mask[:, :-1]], 1)


def policy_loss(scores: Tensor, old: Tensor, gain: Tensor, mask: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Return ``sum_t max(-A p, -A clip(p, 1 - c, 1 + c))`` with p = exp(scores - old), and how many p are clipped."""
    ratio = torch.exp(scores - old)
    free, clipped = -gain * ratio, -gain * ratio.clamp(1 - clip, 1 + clip)
    return (torch.maximum(free, clipped) * mask).sum(), ((clipped > free) * mask).sum().float()


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, clip: float) -> Tensor:
    """Return ``sum_t max((V - R)^2, (V' - R)^2) / 2`` with V' = the value, at most ``clip`` away from the old one."""
    near = old + (values - old).clamp(-clip, clip)
    return (torch.maximum((values - returns).square(), (near - returns).square()) * mask).sum() / 2


def prepared(batch: dict[str, Tensor], settings: PPOSettings) -> dict[str, Tensor]:
    """Return ``advantages`` (whitened) and ``returns`` from ``scores``, ``reference``, ``values`` and ``reward``.

    ``value_mask`` are the tokens whose values are learned.
    """
    mask = batch["mask"]
    value_mask = with_one_more(mask) if settings.value_past_end else mask
    divergence = divergences(batch["scores"], batch["reference"], settings.estimator) * mask
    rewards = token_rewards(divergence, batch["reward"], value_mask, settings.kl)
    if settings.whiten_rewards:
        rewards = whitened(rewards, value_mask, keep_mean=True)
    gain = advantages(rewards, batch["values"], value_mask, settings.discount, settings.smoothing)
    returns = gain + batch["values"] * value_mask
    return {"advantages": whitened(gain, mask), "returns": returns, "value_mask": value_mask}
