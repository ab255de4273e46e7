"""Directories replaced whole or not at all, and nothing but JSON and safetensors read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kill_points import ended_at_each_operation

from mmpeft.formats.storage import read_json, read_steadily, replaced_directory, settle, standing, weights_in


def fill(directory: Path, text: str) -> None:
    with replaced_directory(directory) as partial:
        for name in ("mmpeft.json", "adapter_model.safetensors"):
            (partial / name).write_text(text)


def names(directory: Path) -> list[str]:
    return [file.name for file in directory.iterdir()]


def content(directory: Path) -> set[str]:
    return {file.read_text() for file in directory.iterdir()}


def test_the_new_takes_the_place_of_the_old(tmp_path):
    fill(tmp_path / "a", "old")
    fill(tmp_path / "a", "new")
    assert content(tmp_path / "a") == {"new"}
    assert names(tmp_path) == ["a"]


def test_an_error_while_filling_leaves_the_old(tmp_path):
    fill(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), replaced_directory(tmp_path / "a") as partial:
        (partial / "mmpeft.json").write_text("half")
        raise RuntimeError
    assert content(tmp_path / "a") == {"old"}
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", [1, 2])
def test_an_error_while_renaming_leaves_the_old(failing, tmp_path, monkeypatch):
    fill(tmp_path / "a", "old")
    calls, rename = [], os.rename

    def fail_once(*paths):
        calls.append(paths)
        if len(calls) == failing:
            raise OSError("disk on fire")
        rename(*paths)

    monkeypatch.setattr(os, "rename", fail_once)
    with pytest.raises(OSError, match="on fire"):
        fill(tmp_path / "a", "new")
    assert content(tmp_path / "a") == {"old"}
    assert names(tmp_path) == ["a"]


HERE = Path(__file__).parent
KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = [{here!r}, {tests!r}]
from test_storage import fill
calls, rename = [], os.rename
def kill(*paths):
    calls.append(paths)
    if len(calls) == {moment}:
        os.kill(os.getpid(), 9)
    rename(*paths)
os.rename = kill
fill(Path({path!r}), "new")
"""


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_leaves_the_old(moment, tmp_path):
    fill(tmp_path / "a", "old")
    program = KILLED.format(here=str(HERE), tests=str(HERE.parent), moment=moment, path=str(tmp_path / "a"))
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert weights_in(tmp_path / "a").read_text() == weights_in(tmp_path / "link").read_text() == "old"
    (tmp_path / "link").unlink()
    assert sorted(tmp_path.rglob("*")) == before, "a reader changes nothing"
    fill(tmp_path / "a", "new")
    assert content(tmp_path / "a") == {"new"}
    assert names(tmp_path) == ["a"]


def test_a_kill_before_the_old_was_removed_leaves_the_new(tmp_path):
    fill(tmp_path / "a", "new")
    fill(tmp_path / ".a.previous", "old")
    settle(tmp_path / "a")
    assert content(tmp_path / "a") == {"new"}
    assert names(tmp_path) == ["a"]


def test_files_of_others_are_never_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex"):
        fill(tmp_path / "a", "new")
    assert content(tmp_path / "a") == {"years of work"}
    with pytest.raises(FileExistsError, match="is a file"):
        fill(tmp_path / "a/thesis.tex", "new")


def test_a_link_is_followed(tmp_path):
    fill(tmp_path / "a", "old")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    fill(tmp_path / "link", "new")
    assert content(tmp_path / "a") == {"new"}
    assert (tmp_path / "link").is_symlink()


def test_directories_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="no adapter directory"):
        weights_in(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no adapter_model\.safetensors$"):
        weights_in(tmp_path)
    fill(tmp_path / "flowers", "x")
    with pytest.raises(ValueError, match=r"its directories \['flowers'\] do"):
        weights_in(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter.pt", "x.pth"])
def test_a_pickle_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=f"{name} is a pickle, which can run any code"):
            weights_in(path)


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", "[" * 100_000])
def test_broken_json(text, tmp_path):
    (tmp_path / "mmpeft.json").write_text(text)
    with pytest.raises(ValueError, match=r"mmpeft\.json: "):
        read_json(tmp_path / "mmpeft.json")
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        read_json(tmp_path / "adapter_config.json")


def test_huge_json_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mmpeft.formats.storage.LARGEST_JSON", 10)
    (tmp_path / "mmpeft.json").write_text('{"name": "x"}')
    with pytest.raises(ValueError, match="13 bytes, more than the 10"):
        read_json(tmp_path / "mmpeft.json")


def test_readers_and_writers_of_one_directory_never_fail(tmp_path, monkeypatch):
    """Three writers of two versions at once, while it is read: all that is read is of one version."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    fill(tmp_path / "a", "start")
    children = []
    for version in ("one", "two", "three"):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                for _ in range(30):
                    fill(tmp_path / "a", version)
                code = 0
            finally:
                os._exit(code)
    codes: list[int] = []
    while len(codes) < 3:
        texts = read_steadily(tmp_path / "a", lambda path: {(path / name).read_text() for name in names(path)})
        assert len(texts) == 1
        child, status = os.waitpid(-1, os.WNOHANG)
        codes += [os.waitstatus_to_exitcode(status)] if child else []
    assert codes == [0, 0, 0]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("ending", ["kill", "error"])
@pytest.mark.parametrize("there", [True, False])
def test_a_save_that_ends_anywhere_leaves_the_old_or_the_new(tmp_path, monkeypatch, there, ending):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    expected = {"old", "new"} if there else {"new"}
    ended = []

    def begin_again():
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
        if there:
            fill(tmp_path / "a", "old")

    begin_again()
    for number in ended_at_each_operation(lambda: fill(tmp_path / "a", "new"), ending):
        current = standing(tmp_path / "a")
        assert current.exists() or not there
        if current.exists():
            assert content(current) <= expected
            assert len(content(current)) == 1
            assert len(names(current)) == 2
        fill(tmp_path / "a", "newer")
        assert content(tmp_path / "a") == {"newer"}
        assert names(tmp_path) == ["a"]
        begin_again()
        ended.append(number)
    assert len(ended) > 8
