"""PPO's formulas against plain loops in double precision, and against TRL's words for them."""

from __future__ import annotations

import math

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


def test_whitened_advantages_have_mean_zero_and_variance_one_over_what_was_written() -> None:
    found = whitened(numbers(11) * 3 + 2, MASK)
    written = found[MASK.bool()]
    assert float(written.mean()) == pytest.approx(0, abs=1e-9)
    assert float(written.var(correction=0)) == pytest.approx(1, abs=1e-6)
    assert not found[~MASK.bool()].any()


def test_without_divergence_returns_are_the_rewards_that_come() -> None:
    batch = {"mask": MASK, "scores": numbers(1), "reference": numbers(1), "values": numbers(2) * MASK}
    batch["reward"] = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    found = prepared(batch, PPOSettings(smoothing=1.0))
    torch.testing.assert_close(found["returns"], batch["reward"][:, None] * MASK)
