import os
import threading
import time
from pathlib import Path

import pytest

from mmpeft.files import ABANDONED, replaced_file, write_text
from mmpeft.formats.storage import new_directory


def test_a_failure_in_the_middle_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk full"), replaced_file(path) as temporary:
        temporary.write_text("ne")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "cached.bin"
    with replaced_file(path) as first, replaced_file(path) as second:
        second.write_text("second")
        first.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "step_3"
    with pytest.raises(OSError, match="disk full"), new_directory(path) as temporary:
        (temporary / "state.json").write_text("{}")
        assert not path.exists()
        raise OSError("disk full")
    assert list(path.parent.iterdir()) == []
    with new_directory(path) as temporary:
        (temporary / "state.json").write_text("{}")
    assert [file.name for file in path.iterdir()] == ["state.json"]


def test_what_a_killed_process_left_is_removed_by_a_later_one(tmp_path: Path) -> None:
    path = tmp_path / "a[1].json"
    left, living = (tmp_path / f".{path.name}.{name}.partial.json" for name in ("0123abcd", "4567abcd"))
    for file in (left, living):
        file.write_text("half")
    os.utime(left, (time.time() - 2 * ABANDONED,) * 2)
    write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, living])


def test_two_that_make_one_directory_do_not_meet(tmp_path: Path) -> None:
    path, errors = tmp_path / "out", []

    def second() -> None:
        try:
            with new_directory(path) as temporary:
                (temporary / "second").touch()
        except FileExistsError as error:
            errors.append(str(error))

    with new_directory(path) as temporary:
        thread = threading.Thread(target=second)
        thread.start()
        (temporary / "first").touch()
    thread.join()
    assert [file.name for file in path.iterdir()] == ["first"]
    assert errors == [f"{path} is there already: choose another"]
