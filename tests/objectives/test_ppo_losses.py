"""PPO's formulas against plain loops in double precision, and against TRL's words for them."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import Tensor

from mmpeft.objectives.ppo_losses import (
    advantages,
    divergences,
    policy_loss,
    prepared,
    token_rewards,
    value_loss,
    whitened,
)
from mmpeft.objectives.ppo_settings import PPOSettings

LENGTHS = (4, 1, 3)


def numbers(seed: int) -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


MASK = torch.tensor([[float(t < length) for t in range(4)] for length in LENGTHS], dtype=torch.float64)


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_advantages_are_sums_of_discounted_surprises(discount: float) -> None:
    rewards, values, smoothing = numbers(0) * MASK, numbers(1), 0.8
    found = advantages(rewards, values, MASK, discount, smoothing)
    for row, length in enumerate(LENGTHS):
        ahead = [float(values[row, t]) for t in range(length)] + [0.0]
        surprises = [float(rewards[row, t]) + discount * ahead[t + 1] - ahead[t] for t in range(length)]
        for t in range(4):
            expected = sum((discount * smoothing) ** (u - t) * surprises[u] for u in range(t, length))
            assert float(found[row, t]) == pytest.approx(expected, abs=1e-12)


def test_an_answer_is_rewarded_at_its_last_token_and_pays_for_every_one() -> None:
    away, reward = numbers(2), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = token_rewards(away, reward, MASK, 0.1)
    for row, length in enumerate(LENGTHS):
        expected = [-0.1 * float(away[row, t]) + (float(reward[row]) if t == length - 1 else 0) for t in range(length)]
        assert found[row].tolist() == pytest.approx(expected + [0.0] * (4 - length), abs=1e-12)


def test_both_estimators_are_those_of_schulman() -> None:
    scores, reference = numbers(3), numbers(4)
    for row in range(3):
        for t in range(4):
            p, r = float(scores[row, t]), float(reference[row, t])
            assert float(divergences(scores, reference, "k1")[row, t]) == pytest.approx(p - r)
            k3 = math.exp(r - p) - 1 - (r - p)
            assert float(divergences(scores, reference, "k3")[row, t]) == pytest.approx(k3)
            assert k3 >= 0


def test_losses_are_clipped_as_in_the_paper() -> None:
    scores, old, gain = numbers(5) * 0.3, numbers(6) * 0.3, numbers(7)
    values, before, returns = numbers(8), numbers(9), numbers(10)
    policy = clipped = value = 0.0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            ratio, a = math.exp(float(scores[row, t] - old[row, t])), float(gain[row, t])
            free, near = -a * ratio, -a * min(max(ratio, 0.8), 1.2)
            policy, clipped = policy + max(free, near), clipped + (near > free)
            v, b, r = (float(x[row, t]) for x in (values, before, returns))
            moved = b + min(max(v - b, -0.2), 0.2)
            value += max((v - r) ** 2, (moved - r) ** 2) / 2
    found, count = policy_loss(scores, old, gain, MASK, 0.2)
    assert (float(found), float(count)) == pytest.approx((policy, clipped))
    assert float(value_loss(values, before, returns, MASK, 0.2)) == pytest.approx(value)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """As TRL's PPO has it, written down row by row: a sample's variance, mean kept if asked."""
    kept = [float(v) for v, m in zip(values.flatten(), mask.flatten(), strict=True) if m]
    mean, deviation = statistics.fmean(kept), math.sqrt(statistics.variance(kept) + 1e-8)
    return ((values - mean) / deviation + (0 if shift_mean else mean)) * mask


def test_advantages_are_whitened_as_trl_does_it() -> None:
    values = numbers(11) * 3 + 2
    torch.testing.assert_close(whitened(values, MASK), masked_whiten(values, MASK), rtol=1e-12, atol=1e-12)
    written = whitened(values, MASK)[MASK.bool()]
    assert float(written.mean()) == pytest.approx(0, abs=1e-9)
    assert float(written.var()) == pytest.approx(1, abs=1e-7)
    assert not whitened(values, MASK)[~MASK.bool()].any()
    alone = torch.zeros_like(MASK)
    alone[1, 0] = 1
    assert not whitened(values, alone).any(), "one token has no variance"


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("past_end", [False, True])
def test_rewards_advantages_and_returns_are_those_of_trl(whiten: bool, past_end: bool) -> None:
    """TRL's PPO with its two masks, step by step: with one mask where ``value_past_end`` is off."""
    batch = {"mask": MASK, "scores": numbers(1), "reference": numbers(4), "values": numbers(2)}
    batch["reward"] = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    settings = PPOSettings(whiten_rewards=whiten, value_past_end=past_end, discount=0.95)
    lengths = torch.tensor(LENGTHS) - 1
    later = torch.where(lengths + 1 < 4, lengths + 1, lengths) if past_end else lengths
    learned = (torch.arange(4) <= later[:, None]).double()
    values = batch["values"] * learned
    rewards = -settings.kl * (batch["scores"] - batch["reference"]) * MASK
    rewards[torch.arange(3), later] += batch["reward"]
    if whiten:
        rewards = masked_whiten(rewards, learned, shift_mean=False)
    ahead, columns = torch.zeros(3, dtype=torch.float64), []
    for t in reversed(range(4)):
        following = values[:, t + 1] if t < 3 else 0.0
        ahead = rewards[:, t] + 0.95 * following - values[:, t] + 0.95 * settings.smoothing * ahead
        columns.append(ahead)
    gain = torch.stack(columns[::-1], 1)
    found = prepared(batch, settings)
    torch.testing.assert_close(found["value_mask"], learned)
    torch.testing.assert_close(found["returns"], (gain + values) * learned, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["advantages"], masked_whiten(gain, MASK), rtol=1e-12, atol=1e-12)


def test_without_divergence_returns_are_the_rewards_that_come() -> None:
    batch = {"mask": MASK, "scores": numbers(1), "reference": numbers(1), "values": numbers(2) * MASK}
    batch["reward"] = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    found = prepared(batch, PPOSettings(smoothing=1.0))
    torch.testing.assert_close(found["returns"], batch["reward"][:, None] * MASK)
