from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))


def test_bent_data() -> None:
    """A few of `make fuzz`: what is random is the same in every run."""
    from fuzz import faults_in

    assert faults_in("data", seed=1, cases=80) == []
