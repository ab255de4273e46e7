"""Files that a list names, and files of a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig, load_data
from mmpeft.data.readers import READERS
from mmpeft.data.readers.paths import image_names


@pytest.fixture
def folder(tmp_path, picture):
    """A table of four images in a folder, and an image beside the folder."""
    for number in range(4):
        picture(tmp_path / "inside" / "sub" / f"{number}.png")
    picture(tmp_path / "outside.png")
    picture(tmp_path / "inside-too" / "x.png")
    return tmp_path / "inside"


def table(folder, *names):
    rows = [f"{name},{'ab'[number % 2]}" for number, name in enumerate([*names, *(f"sub/{n}.png" for n in range(4))])]
    (folder / "t.csv").write_text("\n".join(["image,label", *rows]))
    return {"name": "table", "path": str(folder / "t.csv"), "validation": None, "test": 1}


def leave(folder, way):
    """Return the name of an image outside the folder."""
    if way == "link to a file":
        (folder / "link.png").symlink_to(folder.parent / "outside.png")
        return "link.png"
    if way == "link to a folder":
        (folder / "up").symlink_to(folder.parent)
        return "up/outside.png"
    above, beside = "sub/../../outside.png", "../inside-too/x.png"
    return {"dots": above, "a name that begins alike": beside, "the root": str(folder.parent / "outside.png")}[way]


WAYS = ["dots", "a name that begins alike", "the root", "link to a file", "link to a folder"]


@pytest.mark.parametrize("way", WAYS)
def test_a_table_stays_in_its_folder(folder, way):
    name = leave(folder, way)
    config = table(folder, name)
    with pytest.raises(ValueError, match=r"t.csv, column 'image': 1 of 5 files lie outside .*data.allow_outside=true"):
        load_data(DataConfig(**config), to_tensor)
    samples = READERS["table"](DataConfig(**config, allow_outside=True))
    assert next(sample.id for sample in samples if sample.open().size == (4, 4)) == name


def test_links_that_stay_inside_are_followed(folder):
    (folder / "link.png").symlink_to(folder / "sub" / "0.png")
    (folder / "again").symlink_to(folder / "sub")
    assert len(READERS["table"](DataConfig(**table(folder, "link.png", "again/1.png", "sub/../sub/2.png")))) == 7


def test_lists_of_benchmarks_stay_in_their_folders(folder):
    root = folder / "cifar"
    root.mkdir()
    for name in ("train800.txt", "val200.txt", "test.txt"):
        (root / name).write_text("../../outside.png 0\n")
    with pytest.raises(ValueError, match=r"train800.txt: 1 of 1 files lie outside"):
        READERS["vtab"](DataConfig(name="vtab", path=str(folder), dataset="cifar"))
    (folder / "cub" / "images").mkdir(parents=True)
    for name in ("train.json", "val.json", "test.json"):
        (folder / "cub" / name).write_text('{"/etc/passwd": 1}')
    with pytest.raises(ValueError, match=r"train.json: 1 of 1 files lie outside"):
        READERS["fgvc"](DataConfig(name="fgvc", path=str(folder), dataset="cub"))


@pytest.mark.parametrize("name", ["x" * 5000 + ".png", "a\0b.png", "/" * 5000, "sub/0.png/../../../outside.png"])
def test_names_that_are_no_files_are_errors(folder, name):
    with pytest.raises(ValueError, match=r"t.csv, column 'image': 1 of 5") as caught:
        load_data(DataConfig(**table(folder, name)), to_tensor)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read as csv: No columns"),
        ("image,label\n", "there are no rows"),
        ("image,label\na.png,a\xe9".encode("latin-1"), r"byte 0xe9 at \d+ is no UTF-8"),
        ('image,label\na.png,"a\n', "can't be read as csv"),
        ("image,label,label\na.png,a,b\n", "a column of the same name comes twice: label"),
        ("image,label\nsub/0.png,inf\nsub/1.png,1", r"1 of 2 labels are no class: inf \(row 1\)"),
        ("image,label\nsub/0.png,1\nsub/1.png,-1e400", r"1 of 2 labels are no class: -inf \(row 2\)"),
    ],
)
def test_tables_that_are_none(folder, content, message):
    config = table(folder)
    (folder / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"t\.csv.*{message}"):
        load_data(DataConfig(**config), to_tensor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "this is no JSON"),
        ("[1]", "it holds list, not classes by their images' names"),
        ('{"a.png": [1]}', r"1 of 1 labels are no class: \[1\]"),
        ('{"a.png": Infinity}', "1 of 1 labels are no class: inf"),
        ('{"a.png": ' + "9" * 5000 + "}", "this is no JSON"),
        (b'{"a.png": "\xff"}', "byte 0xff at 11 is no UTF-8"),
        ('{"a\\ud800.png": 1}', "1 of 1 are no paths"),
    ],
)
def test_lists_that_are_none(tmp_path, content, message):
    (tmp_path / "cub" / "images").mkdir(parents=True)
    for name in ("train.json", "val.json", "test.json"):
        (tmp_path / "cub" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"data .*cub/train.json: .*{message}"):
        READERS["fgvc"](DataConfig(name="fgvc", path=str(tmp_path), dataset="cub"))


def test_images_of_a_folder_are_sorted_as_their_paths_are(tmp_path, picture):
    for name in ("b.png", "a/z.JPG", "a-b/x.png", "a/b/c.png", "a.png", "a/.d/e.gif", "c.txt"):
        picture(tmp_path / name) if name.endswith("png") else Image.new("L", (4, 4)).save(_made(tmp_path / name), "PNG")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    paths = [path for path in tmp_path.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".gif")]
    assert image_names(tmp_path) == [path.relative_to(tmp_path).as_posix() for path in sorted(paths)]


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def test_a_folder_with_names_that_are_no_utf_8(tmp_path, picture):
    picture(tmp_path / "a" / "0.png")
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"/\xff.png")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 of 2 file names are no UTF-8: '.udcff.png'"):
        load_data(DataConfig(name="folder", path=str(tmp_path)), to_tensor)
