from __future__ import annotations

import pickle
from collections import OrderedDict

import pytest

from mmpeft.data.readers.datum import Datum as Read
from mmpeft.data.readers.datum import read_datums


class Datum:
    def __init__(self, impath):
        self._impath, self._label, self._domain, self._classname = impath, 3, 0, "cat"


class Program:
    """Runs something when it is unpickled."""

    def __reduce__(self):
        return print, ("run",)


def written(path, content, protocol=4):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_datums_are_read_without_their_class(tmp_path, protocol):
    path = written(tmp_path / "shots.pkl", {"train": [Datum("/a/b.png")], "val": []}, protocol)
    assert read_datums(path) == {"train": [Read("/a/b.png", 3, "cat")], "val": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": [Program()]}, "it wants builtins.print, and only Datum is read"),
        ({"train": OrderedDict()}, "it wants collections.OrderedDict"),
        ({"train": ["a.png"]}, "not a file of drawn shots"),
        ({"test": []}, "it has no 'train'"),
        ([1], "it has no 'train'"),
    ],
)
def test_anything_else_is_refused_and_not_run(tmp_path, capsys, content, message):
    with pytest.raises(ValueError, match=message):
        read_datums(written(tmp_path / "shots.pkl", content))
    assert capsys.readouterr().out == ""


def test_a_file_that_is_no_pickle(tmp_path):
    path = tmp_path / "shots.pkl"
    for content in (b"", b"no pickle at all"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"shots.pkl: not a file of drawn shots"):
            read_datums(path)
