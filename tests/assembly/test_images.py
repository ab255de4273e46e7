from __future__ import annotations

import pytest

from mmpeft.assembly.images import refuse_one_class


def test_one_class_alone_is_nothing_to_learn() -> None:
    refuse_one_class(("cat", "dog"), "pets")
    with pytest.raises(ValueError, match="data: pets has one class, 'cat'"):
        refuse_one_class(("cat",), "pets")
    with pytest.raises(ValueError, match="the training samples of data: pets has one class, 'dog'"):
        refuse_one_class(("cat", "dog"), "pets", [1, 1, 1])
