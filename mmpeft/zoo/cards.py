"""The cards of the embedded models: what each is, and where its weights lie. Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmpeft.settings import nearest

WEIGHTS = Path(__file__).parent / "weights"


def models() -> list[str]:
    """Return the names of the embedded models, ready for `load_model`."""
    return [f"tiny/{path.stem.removeprefix('tiny_')}" for path in sorted(WEIGHTS.glob("tiny_*.json"))]


def find_card(name: str) -> Path:
    """Return the JSON file that describes an embedded model; its weights lie beside it.

    Raises:
        ValueError: If there is no such model.
    """
    if f"tiny/{name}" not in models():
        raise ValueError(f"model 'tiny/{name}' is not embedded{nearest(f'tiny/{name}', models())}")
    return WEIGHTS / f"tiny_{name}.json"


def read_card(path: Path) -> dict[str, Any]:
    """Read a model's ``library``, ``architecture``, ``preprocessing`` and, of a text tower, ``tokenizer``."""
    card: dict[str, Any] = json.loads(path.read_text())
    return card
