"""Valid files of every format, bent: a few hundred cases from one seed; ``make fuzz`` has as many as one likes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
from fuzz import faults_in


@pytest.mark.filterwarnings("ignore")
def test_every_bent_file_ends_in_a_clear_error_or_a_right_load() -> None:
    assert faults_in("formats", seed=0, cases=300) == []
