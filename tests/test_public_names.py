"""Public names: from the registry at runtime, from stubs for type checkers and editors."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

import mmpeft

ROOT = Path(__file__).parents[1]


def test_every_method_is_public() -> None:
    for name, method in mmpeft.methods().items():
        if method.package() is None:
            assert method.__name__ in mmpeft.__all__, name  # type: ignore[attr-defined]
            assert method.__name__ in dir(mmpeft)
            assert getattr(mmpeft, method.__name__) is method


@pytest.fixture(scope="module")
def stubs() -> Any:
    spec = spec_from_file_location("stubs", ROOT / "tools/stubs.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("package", ["mmpeft", "mmpeft.anatomies", "mmpeft.methods"])
def test_stubs_have_these_names(stubs: Any, package: str) -> None:
    assert package in stubs.MORE
    assert stubs.path(package).read_text() == stubs.stub(package), "run python tools/stubs.py"


LAZY = """
import sys
import mmpeft
assert not {"torch", "pydantic"} & sys.modules.keys()
import mmpeft.methods
from mmpeft.methods import LoRA
assert mmpeft.methods()["lora"] is LoRA is mmpeft.LoRA is mmpeft.methods.LoRA
assert not hasattr(mmpeft, "Lora") and not hasattr(mmpeft, "__wrapped__")
from mmpeft.anatomies import Anatomy
assert "torch" in sys.modules
"""


def test_nothing_is_imported_before_it_is_needed() -> None:
    without_torch = LAZY.replace("from mmpeft.anatomies", 'assert "torch" not in sys.modules\nfrom mmpeft.anatomies')
    subprocess.run([sys.executable, "-c", without_torch], check=True)


def test_everything_comes_with_a_star() -> None:
    names: dict[str, Any] = {}
    exec("from mmpeft import *", names)
    assert names["LoRA"] is mmpeft.LoRA and names["adapt"] is mmpeft.adapt
