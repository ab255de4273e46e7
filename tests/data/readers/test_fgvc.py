from __future__ import annotations

import json

import pytest
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data
from mmpeft.data.protocols.fgvc import FGVC


@pytest.fixture
def dogs(tmp_path, picture):
    folder = tmp_path / "Stanford-dogs"
    for number, name in enumerate(("train", "val", "test")):
        files = {f"n{label:03d}/{name}.png": label for label in range(1, 121)}
        for file, label in files.items():
            picture(folder / "Images" / file, label + number)
        (folder / f"{name}.json").write_text(json.dumps(files))
    return tmp_path


def load(path, dataset="dogs", **options):
    return load_data(DataConfig(name="fgvc", path=str(path), dataset=dataset, **options), to_tensor)


def test_the_lists_are_the_splits(dogs):
    splits = load(dogs)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [120, 120, 120]
    assert splits.classes == tuple(str(label) for label in range(1, 121))
    assert all(round(sample["image"].mean().item() * 255) == sample["label"] + 1 for sample in splits.train)
    assert splits.test.ids[0] == "n001/test.png"


def test_another_number_of_classes_is_another_data_set(dogs):
    files = dogs / "Stanford-dogs" / "train.json"
    labels = json.loads(files.read_text())
    files.write_text(json.dumps(labels | {"more.png": 500}))
    with pytest.raises(ValueError, match="121 classes, but dogs has 120"):
        load(dogs)


def test_missing_lists_are_named(dogs):
    (dogs / "Stanford-dogs" / "test.json").unlink()
    with pytest.raises(ValueError, match=r"Stanford-dogs' lacks test.json, which fgvc needs"):
        load(dogs)
    with pytest.raises(ValueError, match=r"has no folder cub or CUB_200_2011 for data.dataset: cub"):
        load(dogs, "cub")


def test_there_are_five():
    assert {name: task.classes for name, task in FGVC.items()} == {
        "cub": 200, "nabirds": 555, "flowers": 102, "dogs": 120, "cars": 196,
    }  # fmt: skip
