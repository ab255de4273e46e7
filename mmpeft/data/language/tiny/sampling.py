"""Instances that are always the same, in splits that share none of them."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from random import Random
from typing import Any, TypeVar

Row = dict[str, Any]
"""One sample, as a line of a JSON file would hold it."""
Instance = TypeVar("Instance")


def split_of(key: str) -> str:
    """Return the split of an instance by a hash of what it asks: 70 % train, 10 % validation, 20 % test."""
    share = int.from_bytes(sha256(key.encode()).digest()[:4], "big") / 2**32
    return "train" if share < 0.7 else "validation" if share < 0.8 else "test"


def draw(make: Callable[[Random], Instance], key: Callable[[Instance], str], split: str, random: Random) -> Instance:
    """Make instances until one belongs to the split."""
    while split_of(key(instance := make(random))) != split:
        pass
    return instance


def turn(role: str, content: str) -> dict[str, str]:
    """Return one message of a conversation."""
    return {"role": role, "content": content}
