from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from mmpeft.data import DataConfig
from mmpeft.data.language.source_config import TextSource
from mmpeft.data.scenes import STYLES


def test_digits_have_a_protocol_that_can_be_changed():
    config = DataConfig(name="digits")
    assert (config.per_class, config.validation, config.test) == (20, 20, "rest")
    assert DataConfig(name="digits", per_class=5).per_class == 5


@pytest.mark.parametrize(("shots", "validation"), [(1, 1), (2, 2), (4, 4), (16, 4)])
def test_shots_are_short_for_two_numbers(shots, validation):
    for name in ("digits", "scenes"):
        config = DataConfig(name=name, shots=shots)
        assert (config.per_class, config.validation, config.test) == (shots, validation, "rest")
    assert DataConfig.model_validate(config.model_dump()) == config


def test_vtab_images_are_squashed():
    assert DataConfig(name="vtab", path="x", dataset="cifar").fit == "whole"
    assert DataConfig(name="fgvc", path="x", dataset="cub").fit == "crop"


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
        ({"name": "scenes", "style": None}, "style: missing; name: scenes"),
        ({"name": "digits", "style": "neon"}, "style: 'neon' is for name: scenes, not for name: digits"),
        ({"name": "folder"}, "path: missing; name: folder needs"),
        ({"name": "folder", "path": "x", "test": "rest"}, "test: rest needs per_class"),
        ({"name": "folder", "path": "x", "split_column": "part"}, "split_column: 'part' is for name: table"),
        ({"name": "folder", "path": "x", "validation": 0}, "validation"),
        ({"name": "folder", "path": "x", "validation": 1.5}, "validation"),
        ({"name": "folder", "path": "x", "augment": ["mixup"]}, "augment"),
        ({"name": "folder", "path": "x", "label_column": "kind"}, "label_column: 'kind' is for name: table or"),
        ({"name": "folder", "path": "x", "dataset": "cub"}, "dataset: 'cub' is for name: vtab or fgvc or few_shot"),
        ({"name": "vtab", "path": "x"}, "dataset: None is not in vtab .one of: caltech101, cifar"),
        ({"name": "vtab", "path": "x", "dataset": "cifar10"}, "'cifar10' is not in vtab .did you mean 'cifar'"),
        ({"name": "few_shot", "path": "x", "dataset": "oxford_pet"}, "did you mean 'oxford_pets'"),
        ({"name": "digits", "shots": 4, "per_class": 5}, "shots: 4 and per_class: 5 contradict"),
        ({"name": "digits", "shots": 4, "validation": None}, "shots: 4 and validation: null"),
        ({"name": "digits", "shots": 0}, "shots"),
        ({"name": "digits", "crop_scale": [0.9, 0.5]}, r"crop_scale: \[0.9, 0.5\] begins above its end"),
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


@pytest.mark.parametrize("path", ["x" * 5000, "a/" * 3000, "a/" + "ä" * 200, "a\0b"])
@pytest.mark.parametrize(
    "make", [lambda path: DataConfig(name="folder", path=path), lambda path: TextSource(path=path)]
)
def test_paths_that_no_file_can_have(make, path):
    with pytest.raises(ValueError, match="path") as caught:
        make(path)
    assert "can't be the name of a file or folder" in str(caught.value)
