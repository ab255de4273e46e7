"""A short run of the fuzzer's part for saves that end anywhere; `make fuzz` runs it for as long as one likes."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def test_what_a_killed_save_leaves_is_the_old_or_the_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    from fuzz import faults_in

    assert faults_in("kills", seed=1, cases=60) == []
