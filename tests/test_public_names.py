"""Every method is a class at the top level."""

from __future__ import annotations

import mmpeft


def test_every_method_is_public() -> None:
    for name, method in mmpeft.methods().items():
        assert method.__name__ in mmpeft.__all__, name
        assert getattr(mmpeft, method.__name__) is method
