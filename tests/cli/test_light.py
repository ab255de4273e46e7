"""What answers at once loads nothing heavy: a fresh process counts its modules, since seconds depend on the machine."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {"torch", "numpy", "PIL", "accelerate", "torchvision", "timm", "transformers", "diffusers", "sklearn"}
PROGRAM = """
import contextlib, io, sys
from mmpeft.cli import main
from mmpeft.cli.shipped import configs

def say(*arguments):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return main(arguments)

first = next(iter(configs()))
codes = {(0, say("show", name)) for name in configs()}
codes |= {(0, say("list", what)) for what in ("methods", "tasks", "models", "configs")}
codes |= {(2, say("train", first, "train.lr=fast")), (2, say("check", first, "adapters.main=loar"))}
print(all(wanted == code for wanted, code in codes), len(sys.modules), *sys.modules)
"""


CHECK = """
import sys
from mmpeft.cli import main
assert main(["check", "vision/lora_digits", "train.batch_size=2"]) == 0
print(*sys.modules)
"""


def test_check_loads_only_what_the_model_needs() -> None:
    """A model of timm, on digits: torch, timm, and what these load."""
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines()[-1].split())
    others = {"sklearn", "pandas", "scipy", "transformers", "diffusers", "open_clip", "matplotlib", "bitsandbytes"}
    assert {"torch", "timm"} <= modules
    assert others & modules == set()


def test_show_list_and_mistakes_load_no_library() -> None:
    """All shipped configurations one after the other; a single one loads fewer than 500 modules (375 when written)."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    fine, count, *modules = done.stdout.split()
    assert fine == "True"
    assert HEAVY & set(modules) == set()
    assert int(count) < 500
