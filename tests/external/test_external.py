"""A method, a library and a format in packages of their own, as ``docs/extending.md`` shows them: found and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from installing import install

import mmpeft

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGES = ("vera", "torchvision_vit", "loralib")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the variables of a process in which the packages are installed, in a folder of their own."""
    site = tmp_path / "site"
    site.mkdir()
    for package in PACKAGES:
        install(HERE / package, site)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}


def run(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_both_are_found_by_their_entry_points(environment: dict[str, str], tmp_path: Path) -> None:
    run(environment, str(HERE / "try_out.py"), str(tmp_path / "adapter"))
    manifest = json.loads((tmp_path / "adapter" / "mmpeft.json").read_text())
    assert manifest["packages"] == {"vera": "mmpeft-vera 0.1.0"}


def test_the_command_line_lists_the_method(environment: dict[str, str]) -> None:
    assert "vera" in run(environment, "-m", "mmpeft", "list", "methods")


def test_the_command_line_reads_the_format(environment: dict[str, str], tmp_path: Path) -> None:
    assert "mmpeft-loralib 0.1.0" in run(environment, "-m", "mmpeft", "import", "--help")
    torch.manual_seed(0)
    deltas = {path: (torch.randn(2, 16), torch.randn(16, 2)) for path in ("0", "1")}
    named = {f"{path}.lora_{letter}": pair["AB".index(letter)] for path, pair in deltas.items() for letter in "AB"}
    torch.save(named, tmp_path / "x.pt")
    source, dest = str(tmp_path / "x.pt"), str(tmp_path / "adapter")
    command = "-m", "mmpeft", "import", source, dest, "--format", "loralib", "--options", "alpha=3"
    assert "as mmpeft" in run(environment, *command)
    model, x = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)), torch.randn(4, 16)
    expected = x
    for path, (a, b) in deltas.items():
        layer = model[int(path)]
        expected = layer(expected) + 3 / 2 * expected @ a.T @ b.T
    mmpeft.load(model, dest)
    torch.testing.assert_close(model(x), expected)


MODELS = ("vit", "qk_norm", "open_clip", "gpt2", "gpt_neox", "llama")
"""Fused and plain projections, read past their layer, transposed, and interleaved by head."""


def test_the_matrix_takes_the_method_up_by_itself(environment: dict[str, str]) -> None:
    files = [f"tests/methods/test_{name}.py" for name in ("matrix", "matrix_together", "counts")]
    chosen = f"vera and ({' or '.join(MODELS)})"
    passed = run(environment, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *files, "-k", chosen)
    count = re.search(r"^(\d+) passed", passed, re.MULTILINE)
    assert count is not None and int(count[1]) >= 8 * len(MODELS), passed


CONFIG = f"""
task: {HERE / "focal_task.py"}
model: tiny/vit
adapters: {{main: {{method: vera, rank: 16}}}}
data: {{name: digits}}
gamma: 1.5
train: {{epochs: 1, batch_size: 8, lr: 1e-3}}
"""


def test_a_task_of_a_stranger_with_a_method_of_another(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "focal.yaml").write_text(CONFIG)
    checked = run(environment, "-m", "mmpeft", "check", str(tmp_path / "focal.yaml"))
    assert "vera" in checked and "accuracy" in checked, checked


FILES = [f"{package}/{file}" for package in PACKAGES for file in (f"mmpeft_{package}.py", "pyproject.toml")]


@pytest.mark.parametrize("file", [*FILES, "focal_task.py"])
def test_the_page_shows_what_is_run_here(file: str) -> None:
    blocks = re.findall(r"^```\w+\n(.*?)^```$", (ROOT / "docs/extending.md").read_text(), re.MULTILINE | re.DOTALL)
    assert (HERE / file).read_text() in blocks, f"docs/extending.md shows another {file}"
