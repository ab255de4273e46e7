from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data


def picture(path, value, size=(8, 8), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def folder(tmp_path):
    for number in range(10):
        for label, value in (("dark", 0), ("light", 200)):
            picture(tmp_path / "images" / label / f"{number}.png", value + number)
    return tmp_path / "images"


def test_digits_follow_the_protocol():
    splits = load_data(DataConfig(name="digits"), to_tensor)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [200, 200, 1397]
    assert splits.classes == tuple("0123456789")
    for split in (splits.train, splits.val):
        assert np.bincount(split.labels).tolist() == [20] * 10
    sample = splits.train[3]
    assert sample["image"].shape == (3, 8, 8)
    assert sample["id"].startswith("digits/")
    assert sample["label"] == splits.train.labels[3]


def test_digits_are_the_real_ones():
    from sklearn.datasets import load_digits

    digits = load_digits()
    test = load_data(DataConfig(name="digits"), to_tensor).test
    for index in (0, 700, 1396):
        number = int(test[index]["id"].removeprefix("digits/"))
        assert test[index]["label"] == digits.target[number]
        assert np.allclose(test[index]["image"][0] * 16, digits.images[number], atol=0.05)


def test_digits_take_another_number_per_class():
    splits = load_data(DataConfig(name="digits", per_class=5, validation=10), to_tensor)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [50, 100, 1647]


def test_any_data_can_be_halved_and_counted_in_shots():
    base, new = (load_data(DataConfig(name="digits", shots=16, half=half), to_tensor) for half in ("base", "new"))
    assert (base.classes, new.classes) == (tuple("01234"), tuple("56789"))
    for splits in (base, new):
        assert np.bincount(splits.train.labels).tolist() == [16] * 5
        assert np.bincount(splits.val.labels).tolist() == [4] * 5
        assert [splits.classes[label] for label in splits.test.labels] == [str(s.label) for s in splits.test.samples]
    assert len(base.test) + len(new.test) == 1797 - 200


def test_folder_of_classes(folder):
    splits = load_data(DataConfig(name="folder", path=str(folder)), to_tensor)
    assert splits.classes == ("dark", "light")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [14, 2, 4]
    for sample in splits.train:  # type: ignore[attr-defined]
        assert (sample["image"].mean() > 0.5) == bool(sample["label"])


def test_folder_with_its_own_splits(tmp_path):
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for label in ("a", "b"):
            for number in range(count):
                picture(tmp_path / split / label / f"{number}.png", number)
    splits = load_data(DataConfig(name="folder", path=str(tmp_path)), to_tensor)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [12, 4, 6]
    assert all(name.startswith("val/") for name in splits.val.ids)


def test_folder_errors(tmp_path, folder):
    with pytest.raises(ValueError, match=r"data.path: '.*nowhere' is not a folder"):
        load_data(DataConfig(name="folder", path=str(tmp_path / "nowhere")), to_tensor)
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="1 of 3 class folders have no image: empty"):
        load_data(DataConfig(name="folder", path=str(folder)), to_tensor)


def test_broken_images_are_counted_and_named(folder):
    (folder / "dark" / "0.png").write_text("no picture")
    whole = (folder / "light" / "3.png").read_bytes()
    (folder / "light" / "3.png").write_bytes(whole[:-30])
    with pytest.raises(
        ValueError, match=r"2 of 20 images can't be read: .*(dark/0.png.*light/3.png|light/3.png.*dark/0)"
    ):
        load_data(DataConfig(name="folder", path=str(folder)), to_tensor)
    assert len(load_data(DataConfig(name="folder", path=str(folder), verify=False), to_tensor).train) == 14


@pytest.fixture
def table(folder):
    rows = ["file,kind,part"]
    rows += [f"{label}/{n}.png,{label},{'train' if n < 6 else 'dev' if n < 8 else 'test'}"
             for label in ("dark", "light") for n in range(10)]  # fmt: skip
    (folder / "table.csv").write_text("\n".join(rows))
    return folder / "table.csv"


def table_config(path, **values):
    return DataConfig(**{"name": "table", "path": str(path), "image_column": "file", "label_column": "kind", **values})


def test_csv_table(table):
    splits = load_data(table_config(table, split_column="part"), to_tensor)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [12, 4, 4]
    assert splits.val.ids == ["dark/6.png", "dark/7.png", "light/6.png", "light/7.png"]


def test_parquet_table_is_the_csv_table(table):
    pandas = pytest.importorskip("pandas")
    parquet = table.with_suffix(".parquet")
    pandas.read_csv(table).to_parquet(parquet)
    one, two = (load_data(table_config(path), to_tensor) for path in (table, parquet))
    assert one.train.ids == two.train.ids
    assert one.classes == two.classes


def test_table_with_numbers_as_labels(table):
    table.write_text(table.read_text().replace(",dark,", ",3,").replace(",light,", ",12,"))
    assert load_data(table_config(table), to_tensor).classes == ("3", "12")


def test_table_errors(table):
    with pytest.raises(ValueError, match=r"data.label_column: .* has no column 'kinds' \(did you mean 'kind'\?\)"):
        load_data(table_config(table, label_column="kinds"), to_tensor)
    text = table.read_text()
    table.write_text(text.replace("dark/0.png", "dark/zero.png").replace("light/1.png", "light/one.png"))
    with pytest.raises(ValueError, match=r"2 of 20 images do not exist under .*: dark/zero.png, light/one.png"):
        load_data(table_config(table), to_tensor)
    table.write_text(text.replace("dark/0.png,dark,", "dark/0.png,,"))
    with pytest.raises(ValueError, match=r"1 of 20 samples have no label: dark/0.png"):
        load_data(table_config(table), to_tensor)
    table.write_text(text.replace(",dev", ",holdout"))
    with pytest.raises(ValueError, match=r"4 of 20 rows are in no known split \(holdout\)"):
        load_data(table_config(table, split_column="part"), to_tensor)
    with pytest.raises(ValueError, match=r"neither .csv nor .parquet"):
        load_data(table_config(table.with_name("dark") / "0.png"), to_tensor)


@pytest.fixture
def hugging_face(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, count in (("train", 8), ("test", 2)):
        target = tmp_path / "hub" / split
        lines = []
        for label in ("dark", "light"):
            for number in range(count):
                name = f"{label}_{number}.png"
                picture(target / name, 200 * (label == "light") + number)
                lines.append(json.dumps({"file_name": name, "label": label}))
        (target / "metadata.jsonl").write_text("\n".join(lines))
    return tmp_path / "hub"


def test_hugging_face_folder_with_metadata(hugging_face):
    splits = load_data(DataConfig(name="datasets", path=str(hugging_face), validation=2), to_tensor)
    assert splits.classes == ("dark", "light")
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [12, 4, 4]
    for sample in splits.test:  # type: ignore[attr-defined]
        assert (sample["image"].mean() > 0.5) == bool(sample["label"])


def test_hugging_face_saved_to_disk(folder, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"photo": [str(path) for path in sorted(folder.rglob("*.png"))]}
    rows["kind"] = [0 if "dark" in path else 1 for path in rows["photo"]]
    features = datasets.Features(photo=datasets.Image(), kind=datasets.ClassLabel(names=["dark", "light"]))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    options = {"path": str(tmp_path / "saved"), "image_column": "photo", "label_column": "kind"}
    splits = load_data(DataConfig(name="datasets", **options), to_tensor)
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [14, 2, 4]
    assert all((sample["image"].mean() > 0.5) == bool(sample["label"]) for sample in splits.train)  # type: ignore[attr-defined]


def test_hugging_face_errors(hugging_face, tmp_path):
    with pytest.raises(ValueError, match=r"data.label_column: .* has no column 'lable' \(did you mean 'label'\?\)"):
        load_data(DataConfig(name="datasets", path=str(hugging_face), label_column="lable"), to_tensor)
    with pytest.raises(ValueError, match=r"data.image_column: 'label' of .* holds no images"):
        load_data(DataConfig(name="datasets", path=str(hugging_face), image_column="label"), to_tensor)


def test_colour_modes_become_rgb_and_files_stay(tmp_path):
    for mode, value in (("L", 9), ("RGBA", (1, 2, 3, 4)), ("P", 3), ("1", 1), ("RGB", (1, 2, 3))):
        for number in range(3):
            picture(tmp_path / mode / f"{number}.png", value, mode=mode)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    splits = load_data(DataConfig(name="folder", path=str(tmp_path)), to_tensor)
    assert all(sample["image"].shape == (3, 8, 8) for sample in splits.train)  # type: ignore[attr-defined]
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.png")}


@pytest.mark.parametrize("kind", ["digits", "folder", "datasets"])
def test_splits_can_be_pickled_for_workers(kind, folder, hugging_face):
    paths = {"digits": None, "folder": str(folder), "datasets": str(hugging_face)}
    train = load_data(DataConfig(name=kind, path=paths[kind], per_class=2), to_tensor).train
    assert torch.equal(pickle.loads(pickle.dumps(train))[0]["image"], train[0]["image"])
