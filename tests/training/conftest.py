from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the training program, directly or behind a launcher; it is killed with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, launcher: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, *launcher, str(HERE / "training_program.py"), *map(str, arguments)]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | environment
        streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=variables, start_new_session=True, **streams))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()
