"""Small folders in the layouts of the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def picture():
    """Write a grey picture whose value tells which one it is."""

    def write(path: Path, value: int = 0) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), value % 256).save(path)
        return path.name

    return write
