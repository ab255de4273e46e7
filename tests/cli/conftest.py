"""A task of a user's own that needs no torch, and a configuration for it."""

from __future__ import annotations

from pathlib import Path

import pytest

TASK = '''"""Count to three."""
from mmpeft.training.config import RunConfig


class Config(RunConfig):
    """Options of this task."""

    limit: int = 3


def run(config):
    """Say what would be trained."""
    if config.train.seed == 13:
        raise KeyboardInterrupt
    if config.train.seed == 14:
        raise RuntimeError("a bug")
    if config.train.seed == 15:
        raise ValueError("output: [bold] 'x' already holds a run")
    print("run", config.limit, config.train.lr, config.output)
    return 7 if config.train.seed == 7 else {"test": {"accuracy": 0.5}}


def check(config):
    """Say what would be tried."""
    print("check", config.limit)


def evaluate(config):
    """Return scores."""
    return {"accuracy": 0.25, "limit": config.limit}
'''

CONFIG = """# Count with LoRA.
task: count.py
model: tiny/vit
adapters: {main: {method: lora, rank: 4}}
data: {name: digits}
train: {epochs: 2, lr: 1e-3}
"""


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, the current one, with ``count.py`` and ``count.yaml``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "count.py").write_text(TASK)
    (tmp_path / "count.yaml").write_text(CONFIG)
    return tmp_path
