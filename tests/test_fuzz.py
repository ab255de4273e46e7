"""The fuzzer's parts, a few hundred cases of each from one seed; ``make fuzz`` has as many as one likes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import fuzz

CASES = {"formats": 300}


@pytest.mark.parametrize("part", fuzz.PARTS)
@pytest.mark.filterwarnings("ignore")
def test_every_case_ends_in_a_clear_error_or_a_right_result(part: str) -> None:
    assert fuzz.faults_in(part, seed=0, cases=CASES.get(part, 200)) == []
