"""The README's examples run, and its table is the generated one."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmpeft.cli.shipped import PACKAGE

ROOT = PACKAGE.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(tmp_path: Path) -> None:
    for number, code in enumerate(blocks("python")):
        script = tmp_path / f"example_{number}.py"
        script.write_text(code, encoding="utf-8")
        done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.startswith("mmpeft ") and "photos/" not in line]


def test_command_line_examples_run(tmp_path: Path) -> None:
    assert len(commands()) >= 6
    for command in commands():
        arguments = [sys.executable, "-m", *shlex.split(command)]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_folder_example_runs_on_a_folder(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    for label in ("cat", "dog"):
        for number in range(6):
            path = tmp_path / "photos" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.new("RGB", (40, 30), (number * 30, 90 if label == "cat" else 200, 10)).save(path)
    line = next(line for line in "\n".join(blocks("bash")).splitlines() if "photos/" in line)
    smaller = ["model=tiny/vit", "train.epochs=2", "data.validation=1", "data.test=1"]
    command = [sys.executable, "-m", *shlex.split(line.partition("#")[0]), *smaller]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_table_of_methods_is_the_generated_one() -> None:
    sys.path.insert(0, str(ROOT / "tools"))
    from method_table import BEGIN, END, table

    assert README.partition(BEGIN)[2].partition(END)[0].strip() == table()


def test_links_lead_to_files() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
