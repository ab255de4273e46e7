from __future__ import annotations


def test_bent_data() -> None:
    """A few of `make fuzz`: what is random is the same in every run."""
    from fuzz import faults_in

    assert faults_in("data", seed=1, cases=150) == []
