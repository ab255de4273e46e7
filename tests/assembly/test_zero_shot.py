from __future__ import annotations

from types import SimpleNamespace

import pytest

from mmpeft.assembly.zero_shot import words


def test_words_are_for_classes_that_there_are():
    data = SimpleNamespace(classes=("square", "blue_ring"))
    config = SimpleNamespace(class_names={"square": "box"}, data=SimpleNamespace(title="shapes", half=None))
    assert words(config, data) == ["box", "blue ring"]
    config.class_names = {"sqare": "box"}
    with pytest.raises(ValueError, match=r"class_names: 'sqare' is no class of data shapes \(did you mean 'square'"):
        words(config, data)
    config.data.half = "base"
    assert words(config, data) == ["square", "blue ring"]
