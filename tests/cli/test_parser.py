"""Help: an example for every command, and nothing heavy loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mmpeft.cli import main
from mmpeft.cli.parser import COMMANDS, OVERRIDES, Command, parse

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
    options = parse(command.example.split()[1:])
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


@pytest.mark.parametrize("command", [c for c in COMMANDS if OVERRIDES in c.arguments], ids=lambda command: command.name)
def test_overrides_stand_before_and_behind_options(command: Command) -> None:
    for order in (["x", "a.b=1", "c=2", "--debug"], ["x", "--debug", "a.b=1", "c=2"], ["x", "a.b=1", "--debug", "c=2"]):
        options = parse([command.name, *order])
        assert (options.overrides, options.debug) == (["a.b=1", "c=2"], True)
    assert parse([command.name, "--debug", "x"]).overrides == []


def test_predict_takes_an_override_behind_its_index() -> None:
    options = parse(["predict", "runs/a", "--index", "7", "prompt=a red fox", "seed=3"])
    assert (options.index, options.overrides) == (7, ["prompt=a red fox", "seed=3"])


def test_compare_takes_more_behind_an_option() -> None:
    assert parse(["compare", "a", "--debug", "b", "train.epochs=5"]).configs == ["a", "b", "train.epochs=5"]


@pytest.mark.parametrize("arguments", [["predict", "r", "--indx", "7"], ["copy", "a", "b", "c"], ["show", "a", "-x=1"]])
def test_what_is_no_override_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(arguments)
    assert end.value.code == 2
    assert f"unrecognized arguments: {' '.join(arguments[-1:])}" in capsys.readouterr().err.replace("--indx ", "")
