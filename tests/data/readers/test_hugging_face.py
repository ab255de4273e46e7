"""Rows of Hugging Face data sets that anybody may have made."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def encoded(value=0, exif=None, size=(10, 6)):
    file = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(file, "PNG", exif=exif or Image.Exif())
    return {"bytes": file.getvalue(), "path": None}


def saved(folder, images, labels):
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("float64"))
    table = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    (folder / "rows").mkdir()
    table.to_parquet(folder / "rows" / "train.parquet")
    return str(folder / "rows")


def load(path, **values):
    return load_data(DataConfig(name="datasets", path=path, validation=1, test=1, **values), to_tensor)


def test_pictures_in_rows_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, [encoded(exif=exif)] * 8, [0, 1] * 4)
    assert load(path).train[0]["image"].shape == (3, 10, 6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"bytes": None, "path": "/etc/passwd"}, "1 of 1 files lie"),
        (None, "the row has none"),
        ({"bytes": b"hello", "path": None}, "cannot identify"),
        (encoded(size=(60_000, 1)), "60000 x 1 pixels"),
    ],
)
def test_a_row_whose_picture_can_not_be_used_is_named(tmp_path, image, message):
    path = saved(tmp_path, [*[encoded()] * 8, image], [0, 1] * 4 + [0])
    with pytest.raises(ValueError, match=rf"rows: 1 of 9 images can't be read: train/8 \(.*{message}"):
        load(path)


@pytest.mark.parametrize(("label", "message"), [(np.inf, "1 of 9 labels are no class: inf"), (np.nan, "have no label")])
def test_labels_that_are_no_class(tmp_path, label, message):
    path = saved(tmp_path, [encoded()] * 9, [0, 1] * 4 + [label])
    with pytest.raises(ValueError, match=message):
        load(path)


def test_a_file_of_rows_that_is_none(tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"data.path: '.*rows' is neither a local data set nor one the hub gave"):
        load(str(tmp_path / "rows"))
