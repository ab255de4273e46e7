import torch

from mmpeft.training.average import Average


def test_average_follows_its_formula() -> None:
    weight = torch.tensor([1.0])
    average = Average({"w": weight}, decay=0.4)
    expected = 1.0
    for step, value in enumerate([2.0, -1.0, 5.0], start=1):
        weight.fill_(value)
        average.update(step)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.values["w"], torch.tensor([expected]))


def test_applied_gives_the_average_and_then_the_very_weights_back() -> None:
    weight = torch.randn(5, dtype=torch.bfloat16)
    average = Average({"w": weight}, decay=0.9)
    before = weight.clone()
    weight.add_(1.0)
    changed = weight.clone()
    with average.applied():
        assert torch.equal(weight, before)
    assert torch.equal(weight, changed)


def test_small_updates_of_half_precision_weights_are_not_lost() -> None:
    weight = torch.ones(1, dtype=torch.bfloat16)
    average = Average({"w": weight}, decay=0.999)
    weight.fill_(2.0)
    for _ in range(100):
        average.update(10**6)
    torch.testing.assert_close(average.values["w"], torch.tensor([2 - 0.999**100]))
