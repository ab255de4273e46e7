"""What is imported for data, in a fresh process: a configuration needs no library of images, tables or models."""

from __future__ import annotations

import subprocess
import sys

CONFIGURATIONS = (
    "mmpeft.data.config",
    "mmpeft.data.diffusion_config",
    "mmpeft.data.protocols",
    "mmpeft.data.language.config",
    "mmpeft.data.language.prompt_format",
    "mmpeft.data.language.source_config",
    "mmpeft.data.language.task_config",
)
READERS = ("mmpeft.data.readers", "mmpeft.data.language.text_sets", "mmpeft.data.language.labelled")
HEAVY = ("torch", "torchvision", "timm", "transformers", "sklearn", "datasets", "pandas", "numpy", "PIL")


def heavy_after(*modules: str) -> set[str]:
    imports = "; ".join(f"import {module}" for module in modules)
    code = f"{imports}; import sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_configurations_import_no_library() -> None:
    assert heavy_after(*CONFIGURATIONS) == set()


def test_readers_import_no_library_that_only_some_data_need() -> None:
    assert heavy_after(*READERS) == {"torch", "numpy", "PIL"}
