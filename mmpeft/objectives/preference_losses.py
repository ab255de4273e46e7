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
    text: Tensor | None = None
    """Mean log-probability by the policy of the tokens of all chosen rows, prompts too, where that is minimised."""

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
    likely = chosen.mean if chosen.text is None else chosen.text
    return losses - settings.nll_weight * likely if settings.nll_weight else losses


def single_losses(answers: Answered, good: Tensor, divergence: Tensor | float, settings: PreferenceSettings) -> Tensor:
    """Return the loss of each answer: ``w (1 - sigmoid(+-beta (ratio - z)))``, z the divergence; of APO-zero 0."""
    distance = settings.beta * (answers.ratio - divergence)
    desirable, undesirable = (answers.policy.new_tensor(w) for w in (settings.desirable, settings.undesirable))
    return torch.where(good, desirable * torch.sigmoid(-distance), undesirable * torch.sigmoid(distance))


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


def _exo_pair(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    """Kullback-Leibler divergence of (sigmoid(l), sigmoid(-l)) from (1 - e, e), with e the label smoothing."""
    logits, flipped = settings.beta * (chosen.ratio - rejected.ratio), settings.label_smoothing
    better, worse = logsigmoid(logits), logsigmoid(-logits)
    return better.exp() * (better - math.log1p(-flipped)) + worse.exp() * (worse - math.log(flipped))


def _nca_pair(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    better, worse = settings.beta * chosen.ratio, settings.beta * rejected.ratio
    return -logsigmoid(better) - logsigmoid(-better) / 2 - logsigmoid(-worse) / 2


def _bco_pair(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    return -logsigmoid(settings.beta * chosen.ratio) - logsigmoid(-settings.beta * rejected.ratio)


def _sppo_hard(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    half = 0.5 / settings.beta
    return (chosen.ratio - half) ** 2 + (rejected.ratio + half) ** 2


def _apo_zero(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    return torch.sigmoid(-settings.beta * chosen.ratio) + torch.sigmoid(settings.beta * rejected.ratio)


def _apo_down(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    margin = settings.beta * (chosen.ratio - rejected.ratio)
    return torch.sigmoid(settings.beta * chosen.ratio) + torch.sigmoid(-margin)


def _sigmoid_norm(chosen: Answered, rejected: Answered, settings: PreferenceSettings) -> Tensor:
    return -logsigmoid(settings.beta * (chosen.ratio / chosen.tokens - rejected.ratio / rejected.tokens))


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
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "sigmoid_norm": _sigmoid_norm,
}
"""CPO is DPO with a reference that gives every answer the same."""
