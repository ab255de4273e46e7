"""How the tuners of Res-Tuning's bypass start; what they compute is tested with the files of swift."""

from __future__ import annotations

import pytest
import torch
from tiny_models import plain_vit

import mmpeft
from mmpeft.edits.bypass import BypassResidual


def test_tuners_of_groups_start_as_in_swift() -> None:
    torch.manual_seed(0)
    tuner = BypassResidual(1024, 512, zero=False, weight=1.0, groups=4)
    assert tuner.down.weight.shape == (512, 256) and tuner.up.weight.shape == (256, 512)
    for layer in (tuner.down, tuner.up):
        bound = layer.in_features**-0.5
        assert layer.weight.abs().max() <= bound and layer.weight.std().item() == pytest.approx(
            bound / 3**0.5, rel=0.02
        )
        # The standard deviation of 256 or more normal numbers is within 5 of its own standard deviations (1 / 23) of 1.
        assert layer.bias.std().item() == pytest.approx(1.0, abs=0.23)
    last = BypassResidual(8, 4, zero=True, weight=1.0, groups=2)
    z = torch.randn(2, 3, 8)
    assert torch.equal(last(z), z)


def test_groups_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="groups: 5 does not divide the width"):
        mmpeft.adapt(plain_vit(), mmpeft.ResTuningBypass(groups=5))
