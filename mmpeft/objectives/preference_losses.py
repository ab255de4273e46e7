"""Losses of pairs of answers, and of single ones, by their log-probabilities: the formulas alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmpeft.objectives.preference_settings import PreferenceSettings


@dataclass(frozen=True)
class Answered:
    """Answers (batch,) to a batch of prompts."""

    policy: Tensor
    """Summed log-probability by the policy."""
    reference: Tensor
    """The same by the reference, or zeros."""
    tokens: Tensor
    """Number of tokens."""

    @property
    def ratio(self) -> Tensor:
        """Log-ratio of policy and reference."""
        return self.policy - self.reference

    @property
    def mean(self) -> Tensor:
        """Log-probability per token."""
        return self.policy / self.tokens


def pair_losses(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    """Return the loss of each pair (batch,), with the weighted cross entropy of the chosen answers."""
    losses = _LOSSES[settings.name](chosen, rejected, settings)
    return losses - settings.nll_weight * chosen.mean if settings.nll_weight else losses


def single_losses(answers: Answered, good: Tensor, divergence: Tensor | float, settings: PreferenceSettings) -> Tensor:
    """Return KTO's loss of each answer: ``w (1 - sigmoid(+-beta (ratio - z)))``, with z the divergence."""
    sign = torch.where(good, 1.0, -1.0).to(answers.policy)
    weight = torch.where(good, settings.desirable, settings.undesirable).to(answers.policy)
    return weight * torch.sigmoid(-settings.beta * sign * (answers.ratio - divergence))


def rewards(answers: Answered, settings: PreferenceSettings) -> Tensor:
    """Return the reward (batch,) that a policy stands for: beta times its log-ratio, of SimPO and ORPO per token."""
    return settings.beta * (answers.mean if settings.name in ("simpo", "orpo") else answers.ratio)


def _dpo(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    return _smoothed(settings.beta * (chosen.ratio - rejected.ratio), settings)


def _smoothed(logits: Tensor, settings: PreferenceSettings) -> Tensor:
    flipped = settings.label_smoothing
    return -(1 - flipped) * logsigmoid(logits) - flipped * logsigmoid(-logits)


def _ipo(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    difference = chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens
    return (difference - 1 / (2 * settings.beta)) ** 2


def _hinge(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    return torch.relu(1 - settings.beta * (chosen.ratio - rejected.ratio))


def _robust(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    logits, flipped = settings.beta * (chosen.ratio - rejected.ratio), settings.label_smoothing
    return (-(1 - flipped) * logsigmoid(logits) + flipped * logsigmoid(-logits)) / (1 - 2 * flipped)


def _simpo(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    gamma = 0.5 if settings.gamma is None else settings.gamma
    return _smoothed(settings.beta * (chosen.mean - rejected.mean) - gamma, settings)


def _orpo(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    """``-lambda log sigmoid(log odds ratio)``, odds of the probability per token."""
    odds = (chosen.mean - rejected.mean) - (_log1mexp(chosen.mean) - _log1mexp(rejected.mean))
    return -settings.beta * logsigmoid(odds)


def _log1mexp(log_probability: Tensor) -> Tensor:
    """Return ``log(1 - e^x)`` for x < 0, exact at both ends."""
    below = log_probability.clamp(max=-torch.finfo(log_probability.dtype).eps)
    near = below > -math.log(2)
    return torch.where(near, torch.log(-torch.expm1(below)), torch.log1p(-torch.exp(below)))


_LOSSES: dict[str, Callable[[Answered, Answered, PreferenceSettings], Tensor]] = {
    "dpo": _dpo,
    "cpo": _dpo,
    "ipo": _ipo,
    "hinge": _hinge,
    "robust": _robust,
    "simpo": _simpo,
    "orpo": _orpo,
}
"""CPO is DPO with a reference that gives every answer the same."""
