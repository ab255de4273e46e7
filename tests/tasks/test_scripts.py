"""Every task script is a program of its own, and tells mistakes as ``mmpeft train`` does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmpeft.cli import main
from mmpeft.cli.shipped import load_task, tasks
from mmpeft.settings import ConfigError

SCRIPTS = tasks()


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_mistake_is_one_message(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"task: {name}\nmodle: tiny/vit\n")
    assert main(["show", str(path), "output=3"]) == 2
    wanted = capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        load_task(SCRIPTS[name]).main([str(path), "output=3"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == wanted
    assert "modle" in wanted
    with pytest.raises(ConfigError):
        load_task(SCRIPTS[name]).main([str(path), "--debug"])
