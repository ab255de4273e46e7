import pytest
import torch

from mmpeft.training.average import GaussianAverage, MovingAverage
from mmpeft.training.config import EpochAverage


def test_average_follows_its_formula() -> None:
    weight = torch.tensor([1.0])
    average = MovingAverage({"w": weight}, decay=0.4)
    expected = 1.0
    for step, value in enumerate([2.0, -1.0, 5.0], start=1):
        weight.fill_(value)
        average.after_step(step)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.values["w"], torch.tensor([expected]))


def test_applied_gives_the_average_and_then_the_very_weights_back() -> None:
    weight = torch.randn(5, dtype=torch.bfloat16)
    average = MovingAverage({"w": weight}, decay=0.9)
    before = weight.clone()
    weight.add_(1.0)
    changed = weight.clone()
    with average.applied():
        assert torch.equal(weight, before)
    assert torch.equal(weight, changed)


def test_small_updates_of_half_precision_weights_are_not_lost() -> None:
    weight = torch.ones(1, dtype=torch.bfloat16)
    average = MovingAverage({"w": weight}, decay=0.999)
    weight.fill_(2.0)
    for _ in range(100):
        average.after_step(10**6)
    torch.testing.assert_close(average.values["w"], torch.tensor([2 - 0.999**100]))


@pytest.mark.parametrize(("mean", "std"), [(15, 1), (6, 10), (200, 0.5), (-90, 0.5)])
def test_the_mean_over_epochs_has_normal_weights(mean: float, std: float) -> None:
    """PromptSRC's settings, and two whose densities are all 0 in floating point."""
    weight = torch.zeros(1)
    average = GaussianAverage({"w": weight}, EpochAverage(mean=mean, std=std))
    values = torch.randn(20, dtype=torch.float64)
    for epoch, value in enumerate(values, start=1):
        weight.fill_(value)
        average.after_step(7 * epoch)
        average.after_epoch(epoch)
        shares = (-((torch.arange(1, epoch + 1, dtype=torch.float64) - mean) ** 2) / (2 * std**2)).softmax(0)
        torch.testing.assert_close(average.values["w"].double(), (shares @ values[:epoch])[None], rtol=1e-5, atol=1e-6)
