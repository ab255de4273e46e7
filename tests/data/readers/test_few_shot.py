from __future__ import annotations

import json
import pickle
from collections import Counter

import pytest
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data
from mmpeft.data.protocols import few_shot
from mmpeft.data.protocols.few_shot import FEW_SHOT

EUROSAT = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)
SIZES = {"train": 8, "val": 6, "test": 3}


class Datum:
    """As Dassl's, when pickled."""

    def __init__(self, impath, label, classname):
        self._impath, self._label, self._domain, self._classname = impath, label, 0, classname


@pytest.fixture
def eurosat(tmp_path, picture):
    """Images and the split file; the classes are in an order of their own."""
    folder, parts = tmp_path / "eurosat", {}
    for part, size in SIZES.items():
        parts[part] = []
        for label, name in enumerate(reversed(EUROSAT)):
            for number in range(size):
                path = f"{name}/{name}_{part}{number}.png"
                picture(folder / "2750" / path, 20 * label)
                parts[part].append([path, label, name])
    (folder / "split_zhou_EuroSAT.json").write_text(json.dumps(parts))
    return tmp_path


def load(path, dataset="eurosat", **options):
    return load_data(DataConfig(name="few_shot", path=str(path), dataset=dataset, **options), to_tensor)


def per_class(split):
    return set(Counter(split.labels).values())


def test_the_split_file_gives_splits_order_and_names(eurosat):
    splits = load(eurosat)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [80, 60, 30]
    assert splits.classes[0] == "Sea or Lake"
    assert splits.classes[-1] == "Annual Crop Land"
    assert all(round(sample["image"].mean().item() * 255) == 20 * sample["label"] for sample in splits.test)


@pytest.mark.parametrize(("shots", "validation"), [(1, 1), (2, 2), (5, 4)])
def test_shots(eurosat, shots, validation):
    splits = load(eurosat, shots=shots)
    assert (per_class(splits.train), per_class(splits.val), per_class(splits.test)) == ({shots}, {validation}, {3})
    assert all("_val" in name for name in splits.val.ids)
    assert load(eurosat, shots=shots, split_seed=1).train.ids != splits.train.ids


def test_a_class_with_fewer_images_repeats_none(eurosat):
    splits = load(eurosat, shots=16)
    assert per_class(splits.train) == {8}
    assert len(set(splits.train.ids)) == 80


def test_base_and_new_classes_keep_the_order(eurosat):
    base, new = (load(eurosat, shots=2, half=half) for half in ("base", "new"))
    assert base.classes == ("Sea or Lake", "River", "Residential Buildings", "Permanent Crop Land", "Pasture Land")
    assert len(base.classes) == len(new.classes) == 5
    assert set(base.classes).isdisjoint(new.classes)
    assert set(new.test.labels) == set(range(5))
    assert len(new.test) == 15
    assert base.train.ids + new.train.ids != load(eurosat, shots=2).train.ids
    assert {*base.train.ids, *new.train.ids} == set(load(eurosat, shots=2).train.ids)


def write_shots(folder, name, parts):
    (folder / "split_fewshot").mkdir(exist_ok=True)
    (folder / "split_fewshot" / name).write_bytes(pickle.dumps(parts, protocol=4))


def test_drawn_shots_are_the_truth(eurosat):
    """They hold the paths of the machine that drew them."""
    parts = json.loads((eurosat / "eurosat" / "split_zhou_EuroSAT.json").read_text())
    chosen = {"train": parts["train"][1::4], "val": parts["val"][2::3]}
    drawn = {part: [Datum(f"/home/x/eurosat/2750/{entry[0]}", *entry[1:]) for entry in chosen[part]] for part in chosen}
    write_shots(eurosat / "eurosat", "shot_2-seed_1.pkl", drawn)
    splits = load(eurosat, shots=2, split_seed=1)
    assert set(splits.train.ids) == {path for path, *_ in chosen["train"]}
    assert set(splits.val.ids) == {path for path, *_ in chosen["val"]}
    assert len(splits.test) == 30
    with pytest.raises(ValueError, match=r"has no shot_2-seed_3.pkl \(it has: shot_2-seed_1.pkl\)"):
        load(eurosat, shots=2, split_seed=3)


def test_shots_of_other_images_are_refused(eurosat):
    write_shots(eurosat / "eurosat", "shot_1-seed_0.pkl", {"train": [Datum("/x/cat.png", 0, "cat")], "val": []})
    with pytest.raises(ValueError, match=r"1 of 1 images are in no split: /x/cat.png"):
        load(eurosat, shots=1)


@pytest.fixture
def imagenet(tmp_path, picture, monkeypatch):
    """Three classes, two of them of one name."""
    names = {"n02": "crane", "n01": "tench", "n03": "crane"}
    folder = tmp_path / "imagenet"
    for wordnet in names:
        for number in range(6):
            picture(folder / "images" / "train" / wordnet / f"{wordnet}_{number}.JPEG")
        picture(folder / "images" / "val" / wordnet / f"ILSVRC_{wordnet}.JPEG")
    (folder / "classnames.txt").write_text("\n".join(f"{wordnet} {name}" for wordnet, name in names.items()))
    small = few_shot.FewShotTask("imagenet", "images", 3, None)
    monkeypatch.setitem(FEW_SHOT, "imagenet", small)
    return tmp_path


def test_imagenet_is_tested_on_its_validation_images(imagenet):
    splits = load(imagenet, "imagenet", shots=2)
    assert splits.classes == ("tench", "crane", "crane")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [6, 6, 3]
    assert all(name.startswith("val/") for name in splits.test.ids)
    assert set(splits.train.ids).isdisjoint(splits.val.ids)
    assert [name.split("/")[1] for name in splits.test.ids] == ["n01", "n02", "n03"]
    assert list(splits.test.labels) == [0, 1, 2]


def test_drawn_shots_of_imagenet_leave_the_rest_for_validation(imagenet):
    shots = [Datum(f"/d/imagenet/images/train/{w}/{w}_{n}.JPEG", 0, "") for w in ("n01", "n02", "n03") for n in (0, 4)]
    write_shots(imagenet / "imagenet", "shot_2-seed_1.pkl", {"train": shots})
    splits = load(imagenet, "imagenet", shots=2, split_seed=1)
    assert set(splits.train.ids) == {f"train/{w}/{w}_{n}.JPEG" for w in ("n01", "n02", "n03") for n in (0, 4)}
    assert per_class(splits.val) == {2}
    assert set(splits.val.ids).isdisjoint(splits.train.ids)


@pytest.fixture
def aircraft(tmp_path, picture):
    folder = tmp_path / "fgvc_aircraft"
    variants = [f"7{number:02d}-200 ER" for number in range(100)]
    folder.mkdir()
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    for number, part in enumerate(("train", "val", "test")):
        lines = [f"{1000 * number + label:07d} {name}" for label, name in enumerate(variants)]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            picture(folder / "images" / f"{line.split()[0]}.jpg")
    return tmp_path


def test_aircraft_has_lists_of_its_own(aircraft):
    splits = load(aircraft, "fgvc_aircraft")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [100, 100, 100]
    assert splits.classes[3] == "703-200 ER"
    assert splits.val.ids[3] == "0001003.jpg"
    (aircraft / "fgvc_aircraft" / "variants.txt").write_text("A380\n")
    with pytest.raises(ValueError, match=r"'700-200 ER' of 0000000 is not in variants.txt"):
        load(aircraft, "fgvc_aircraft")


def test_missing_files_are_named_together(eurosat):
    with pytest.raises(ValueError, match=r"has no folder oxford_pets for data.dataset: oxford_pets"):
        load(eurosat, "oxford_pets")
    (eurosat / "dtd").mkdir()
    with pytest.raises(ValueError, match=r"dtd' lacks split_zhou_DescribableTextures.json, images, which"):
        load(eurosat, "dtd")


def test_there_are_eleven_with_a_template_each():
    assert len(FEW_SHOT) == 11
    assert sorted(task.classes for task in FEW_SHOT.values()) == [10, 37, 47, 100, 100, 101, 101, 102, 196, 397, 1000]
    assert all(template.count("{}") == 1 for task in FEW_SHOT.values() for template in task.templates)
    assert len(few_shot.IMAGENET_SEVEN) == 7
