"""Directories replaced whole or not at all, and nothing but JSON and safetensors read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmpeft.formats.storage import read_json, replaced_directory, settle, weights_in


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


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {here!r})
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
    program = KILLED.format(here=str(Path(__file__).parent), moment=moment, path=str(tmp_path / "a"))
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert weights_in(tmp_path / "a").read_text() == "old"
    assert content(tmp_path / "a") == {"old"}
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
