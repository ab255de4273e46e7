"""Mutations of bytes and of JSON or YAML values, for the parts of the fuzzer."""

from __future__ import annotations

import copy
import math
from random import Random
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 10**9, 2**63, -(2**63), 10**40, 0.5, -1.5, 1e308, math.inf, math.nan),
    *("", "a", "../../x", "main", "\x00", "ä" * 300, "(a+)+$", "[", ".*", "1", "none", "a." * 200, "a" * 10_000),
    *([], {}, [[]], [None], ["q"], [1, 2], [-1], [10**9], {"a": 1}, {"a": None}, {"": {}}, {"(a+)+": 4}, [{}]),
)
"""What takes the place of a value: other types, extremes, odd text."""
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF)


def mutated_bytes(random: Random, data: bytes) -> bytes:
    """Return bytes that were flipped, cut, doubled, moved or overwritten in some spots."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if not out:
            return bytes(random.randbytes(8))
        at, size = random.randrange(len(out)), random.choice((1, 1, 2, 4, 8, 64))
        change = random.randrange(7)
        if change == 0:
            out[at] ^= 1 << random.randrange(8)
        elif change == 1:
            out[at] = random.choice(NUMBERS)
        elif change == 2:
            del out[at : at + size]
        elif change == 3:
            out[at:at] = random.randbytes(size)
        elif change == 4:
            out[at:at] = out[at : at + size]
        elif change == 5:
            out[at : at + size] = bytes([random.choice(NUMBERS)]) * size
        elif random.random() < 0.3:
            del out[at:]
    return bytes(out)


def mutated_value(random: Random, value: Any) -> Any:
    """Return a nest of lists and dicts with some of its values exchanged, keys renamed, entries dropped or added."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        value = _changed(random, value)
    return value


def _changed(random: Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or random.random() < 0.02:
        return _other(random, value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = random.choice(keys)
    change = random.random()
    if change < 0.1:
        del value[key]
    elif change < 0.2 and isinstance(value, dict):
        value[str(_other(random, key)) if random.random() < 0.5 else random.choice(keys)] = value.pop(key)
    elif change < 0.25 and isinstance(value, list):
        value.extend([copy.deepcopy(value[key])] * random.choice((1, 3, 100)))
    else:
        value[key] = _changed(random, value[key])
    return value


def _other(random: Random, value: Any) -> Any:
    if isinstance(value, bool):
        return random.choice((not value, str(value), int(value), None))
    if isinstance(value, int | float) and random.random() < 0.5:
        return random.choice((-value, value + 1, value - 1, value * 1000, float(value), str(value), [value]))
    if isinstance(value, str) and random.random() < 0.5:
        cut = random.randrange(len(value) + 1)
        other = random.choice("a.*+?()[]{}|\\^$0 \n")
        return random.choice((value[:cut], value[:cut] + other + value[cut:], value * 2, [value], value.upper()))
    return copy.deepcopy(random.choice(VALUES))
