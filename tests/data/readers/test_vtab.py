from __future__ import annotations

import pytest
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data

SIZES = {"train800": 8, "val200": 4, "test": 6}


@pytest.fixture
def vtab(tmp_path, picture):
    """Retinopathy, 5 classes of which the small training lists lack the last."""
    folder = tmp_path / "diabetic_retinopathy"
    lists = {}
    for name, size in SIZES.items():
        lists[name] = []
        for number in range(size):
            label = number % (5 if name == "test" else 4)
            picture(folder / "images" / name / f"{number}.png", 40 * label)
            lists[name].append(f"images/{name}/{number}.png {label}")
    lists["train800val200"] = lists["train800"] + lists["val200"]
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def load(path, dataset="diabetic_retinopathy", **options):
    return load_data(DataConfig(name="vtab", path=str(path), dataset=dataset, fit="crop", **options), to_tensor)


def test_tuning_has_800_and_200(vtab):
    splits = load(vtab)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [8, 4, 6]
    assert splits.classes == ("0", "1", "2", "3", "4")
    for split in (splits.train, splits.val, splits.test):
        assert all(round(sample["image"].mean().item() * 255) == 40 * sample["label"] for sample in split)
    assert all(name.startswith("images/val200/") for name in splits.val.ids)


def test_the_final_training_has_all_1000(vtab):
    tuned, splits = load(vtab), load(vtab, validation=None)
    assert sorted(splits.train.ids) == sorted(tuned.train.ids + tuned.val.ids)
    assert len(splits.val) == 0
    assert splits.test.ids == tuned.test.ids


@pytest.mark.parametrize("spelling", ["cifar", "cifar100"])
def test_both_spellings_of_a_folder(tmp_path, picture, spelling):
    folder = tmp_path / spelling
    picture(folder / "x.png")
    for name in ("train800", "val200", "test"):
        lines = [f"{name}{label}.png {label}" for label in range(100)]
        (folder / f"{name}.txt").write_text("\n".join(lines))
    splits = load(tmp_path, "cifar", verify=False)
    assert len(splits.classes) == 100
    assert len(splits.test) == 100


def test_errors_name_what_is_missing(vtab):
    with pytest.raises(ValueError, match=r"has no folder oxford_iiit_pet or oxford_pet for data.dataset: oxford_iiit"):
        load(vtab, "oxford_iiit_pet")
    (vtab / "diabetic_retinopathy" / "val200.txt").unlink()
    (vtab / "diabetic_retinopathy" / "test.txt").unlink()
    with pytest.raises(ValueError, match=r"diabetic_retinopathy' lacks val200.txt, test.txt, which vtab needs"):
        load(vtab)


def test_a_label_out_of_range_and_a_broken_line(vtab):
    lines = vtab / "diabetic_retinopathy" / "test.txt"
    text = lines.read_text()
    lines.write_text(text.replace("5.png 0", "5.png 7"))
    with pytest.raises(ValueError, match=r"1 of 18 labels are no class .*7 \(images/test/5.png\)"):
        load(vtab)
    lines.write_text(text + "images/test/6.png,3\n")
    with pytest.raises(ValueError, match=r"test.txt:7: 'images/test/6.png,3' is not 'path label'"):
        load(vtab)
