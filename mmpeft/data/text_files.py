"""Texts and JSON from files that anybody may have made: what is wrong with one is said with its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """Return a file's text, without a byte order mark.

    Raises:
        ValueError: If it can't be read or is no UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data {path}: {undecodable(error)}") from None
    except OSError as error:
        raise ValueError(f"data {path}: {error.strerror}") from None


def undecodable(error: UnicodeDecodeError) -> str:
    """Say which byte of a text is no UTF-8."""
    return f"byte {error.object[error.start]:#04x} at {error.start} is no UTF-8: save the text as UTF-8"


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: If it can't be read or is no JSON, or is nested too deep.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"data {path}: this is no JSON: {error}") from None
