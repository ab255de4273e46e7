"""Help: an example for every command, and nothing heavy loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmpeft.cli import main
from mmpeft.cli.parser import COMMANDS, Command, make_parser

LIGHT = """
import sys
from mmpeft.cli import main
for arguments in {commands!r}:
    try:
        assert main(arguments) == 0, arguments
    except SystemExit as end:
        assert end.code == 0, end.code
heavy = {{"torch", "timm", "transformers", "accelerate", "datasets", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""
HELPS = [["--help"], *([command.name, "--help"] for command in COMMANDS)]
LISTS = [["list", what] for what in ("methods", "tasks", "configs")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_shows_an_example_that_parses(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command.name, "--help"])
    assert end.value.code == 0
    assert command.example in capsys.readouterr().out
    options = make_parser().parse_args(command.example.split()[1:])
    assert options.handler == command.handler


@pytest.mark.parametrize("commands", [HELPS, LISTS], ids=["help", "list"])
def test_loads_nothing_heavy(commands: list[list[str]]) -> None:
    subprocess.run([sys.executable, "-c", LIGHT.format(commands=commands)], check=True, capture_output=True)


def test_python_m_mmpeft() -> None:
    done = subprocess.run([sys.executable, "-m", "mmpeft", "--help"], check=True, capture_output=True, text=True)
    assert "mmpeft train vision/adaptformer_digits" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["tain"], ["list", "methds"], ["train"], ["export", "a", "b"]])
def test_a_wrong_call_exits_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        assert main(arguments) == 0, arguments
    assert end.value.code == 2
