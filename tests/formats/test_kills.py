"""A process that is killed, or a disk that is full, at every file operation of saving, exporting and importing.

Each attempt is a forked process, in which an audit hook counts what Python does with files and ends it at one of them.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from torch import nn

import mmpeft
from mmpeft.cli.models import merge
from mmpeft.formats import convert, export
from mmpeft.formats.any_file import write_tensors

EVENTS = ("open", "os.", "shutil.")
KILLED, FAILED, SURVIVED, DONE = 9, 3, 2, 0


def attempt(deed: Callable[[], object], root: Path, at: int, kill: bool) -> int:
    """Do something in a process of its own that ends, or whose disk is full, at a file operation; return how."""
    process = os.fork()
    if process == 0:
        count = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            here = event.startswith(EVENTS) and any(str(root) in str(argument) for argument in arguments)
            count += here
            if here and count == at:
                if kill:
                    os._exit(KILLED)
                raise OSError("no space left on device")

        write = safetensors.torch.serialize_file

        def audited(tensors: Any, path: Any, **options: Any) -> None:
            sys.audit("open", path)
            write(tensors, path, **options)
            sys.audit("open", path)

        safetensors.torch.serialize_file = audited
        sys.addaudithook(hook)
        try:
            deed()
            os._exit(DONE if count < at else SURVIVED)
        except (OSError, ValueError):  # a file that can't be opened to be read is a ValueError with its name
            os._exit(FAILED)
        finally:
            os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def every(deed: Callable[[], object], root: Path, kill: bool, check: Callable[[], None]) -> int:
    """Attempt a deed once for each of its file operations, with a check after each; return how many there were."""
    for at in range(1, 300):
        code = attempt(deed, root, at, kill)
        assert code in ((KILLED, DONE) if kill else (FAILED, SURVIVED, DONE))
        check()
        if code == DONE:
            return at
    raise AssertionError("it never ends")


def value_in(path: Path, vit: Callable[..., nn.Module]) -> float:
    """Return the number that fills a saved adapter, after loading it."""
    (value,) = {float(p.detach().unique().item()) for p in mmpeft.load(vit(), path).state_dict().values()}
    return value


def filled(adapted: Any, value: float) -> Any:
    _, handle = adapted(mmpeft.AdaptFormer(bottleneck=2))
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.fill_(value)
    return handle


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "disk full"])
def test_a_save_over_another_leaves_the_old_or_the_new(kill: bool, vit: Any, adapted: Any, tmp_path: Path) -> None:
    old, new = filled(adapted, 1.0), filled(adapted, 2.0)
    (tmp_path / "link").symlink_to(tmp_path / "a")

    def check() -> None:
        assert value_in(tmp_path / "a", vit) in (1.0, 2.0)
        assert value_in(tmp_path / "link", vit) in (1.0, 2.0)
        old.save(tmp_path / "a")
        assert value_in(tmp_path / "a", vit) == 1.0
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "link"]

    old.save(tmp_path / "a")
    assert every(lambda: new.save(tmp_path / "a"), tmp_path, kill, check) > 10


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "disk full"])
@pytest.mark.parametrize("verb", ["save", "export", "convert", "one file"])
def test_a_first_time_leaves_all_or_nothing(kill: bool, verb: str, vit: Any, adapted: Any, tmp_path: Path) -> None:
    handle = adapted(mmpeft.LoRA(rank=2))[1]
    source, dest = handle.save(tmp_path / "source"), tmp_path / "out" / "a"
    (tmp_path / "out").mkdir()
    torch.save({"shallow_prompt": torch.zeros(1, 2, 32)}, tmp_path / "vpt.pth")
    deeds: dict[str, Callable[[], object]] = {
        "save": lambda: handle.save(dest),
        "export": lambda: export(source, dest, "peft"),
        "convert": lambda: convert(tmp_path / "vpt.pth", dest, "vpt"),
        "one file": lambda: write_tensors(dest / "x.safetensors", {"a": torch.ones(1)}),
    }

    def check() -> None:
        if verb == "one file":
            assert [file.name for file in dest.rglob("*") if not file.name.startswith(".")] in ([], ["x.safetensors"])
        elif dest.exists():
            mmpeft.load(vit(), dest)
        if not kill and not dest.exists():
            assert list(dest.parent.iterdir()) == []
        deeds[verb]()
        hidden = [entry.name for entry in dest.parent.rglob(".*")]
        assert dest.exists() and (not hidden or (kill and verb == "one file"))  # writers of a file don't share a name
        for file in (*dest.iterdir(), dest):
            file.unlink() if file.is_file() else file.rmdir()

    assert every(deeds[verb], tmp_path, kill, check) > 5


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "disk full"])
def test_a_merge_leaves_all_or_nothing(kill: bool, tmp_path: Path) -> None:
    mmpeft.adapt(mmpeft.load_model("tiny/vit"), mmpeft.LoRA(rank=1)).save(tmp_path / "adapter")
    dest = tmp_path / "out" / "merged.safetensors"
    options = Namespace(model="tiny/vit", adapter=str(tmp_path / "adapter"), dest=str(dest), num_classes=None)
    whole = mmpeft.load_model("tiny/vit").state_dict().keys()

    def check() -> None:
        if dest.exists():
            assert load_file(dest).keys() == whole
            dest.unlink()
        left = [file.name for file in dest.parent.iterdir()] if dest.parent.exists() else []
        assert left == [] or (kill and all(name.endswith(".partial.safetensors") for name in left))

    assert every(lambda: merge(options), dest.parent, kill, check) > 5


def test_files_have_the_rights_of_the_umask(adapted: Any, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = adapted(mmpeft.LoRA(rank=2))[1].save(tmp_path / "a")
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (*path.iterdir(), tmp_path / "x.safetensors")}
    assert set(modes.values()) == {0o640} and path.stat().st_mode & 0o777 == 0o750


def test_the_current_directory(adapted: Any, vit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted(mmpeft.AdaptFormer(bottleneck=2))[1].save(tmp_path / "a")
    monkeypatch.chdir(tmp_path / "a")
    assert mmpeft.load(vit(), ".").names == ["main"]
    with pytest.raises(ValueError, match=r"holds no adapter_model"):
        mmpeft.load(vit(), "/")


def test_strings_are_paths(adapted: Any, vit: Any, tmp_path: Path) -> None:
    adapted(mmpeft.LoRA(rank=2))[1].save(str(tmp_path / "a"))
    export(str(tmp_path / "a"), str(tmp_path / "b"), "peft")
    convert(str(tmp_path / "b"), str(tmp_path / "c"), "peft")
    assert mmpeft.load(vit(), str(tmp_path / "c")).names == ["main"]


@pytest.mark.filterwarnings("error:.*fits, but was made")
def test_a_warning_that_is_an_error_leaves_the_model(adapted: Any, vit: Any, tmp_path: Path) -> None:
    adapted(mmpeft.AdaptFormer(bottleneck=2))[1].save(tmp_path / "a")
    model = vit(img_size=48)
    with pytest.raises(UserWarning, match="fits, but was made"):
        mmpeft.load(model, tmp_path / "a")
    assert not hasattr(model, "mmpeft")
