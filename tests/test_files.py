from pathlib import Path

import pytest

from mmpeft.files import new_directory, replaced_file, write_text


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
