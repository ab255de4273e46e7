from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from mmpeft.data import DataConfig
from mmpeft.data.scenes import STYLES


def test_digits_have_a_protocol_that_can_be_changed():
    config = DataConfig(name="digits")
    assert (config.per_class, config.validation, config.test) == (20, 20, "rest")
    assert DataConfig(name="digits", per_class=5).per_class == 5


def test_scenes_have_a_protocol_and_a_style():
    config = DataConfig(name="scenes")
    assert (config.per_class, config.validation, config.test, config.style) == (16, 16, "rest", "sketch")
    assert get_args(DataConfig.model_fields["style"].annotation)[0].__args__ == STYLES


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "digit"}, "name"),
        ({"name": "digits", "path": "x"}, "path: 'x' has no meaning for name: digits"),
        ({"name": "scenes", "path": "x"}, "path: 'x' has no meaning for name: scenes"),
        ({"name": "scenes", "style": "neo"}, "style"),
        ({"name": "scenes", "style": None}, "style: None can't go with name: scenes"),
        ({"name": "digits", "style": "neon"}, "style: 'neon' can't go with name: digits"),
        ({"name": "folder"}, "path: missing; name: folder needs"),
        ({"name": "folder", "path": "x", "test": "rest"}, "test: rest needs per_class"),
        ({"name": "folder", "path": "x", "split_column": "part"}, "split_column: 'part' is for name: table"),
        ({"name": "folder", "path": "x", "validation": 0}, "validation"),
        ({"name": "folder", "path": "x", "validation": 1.5}, "validation"),
        ({"name": "folder", "path": "x", "augment": ["mixup"]}, "augment"),
    ],
)
def test_a_wrong_value_names_its_key(values, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**values)


def test_importing_the_configuration_needs_no_torch():
    program = (
        "import sys, mmpeft.data; mmpeft.data.DataConfig; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
