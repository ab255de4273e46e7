"""The random state of a process: taken, put back, and replaced for a moment."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's generators as JSON values."""
    algorithm, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [algorithm, keys.tolist(), position, has_gauss, gauss],  # type: ignore[attr-defined]
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_available() else None,
    }


def restore(state: dict[str, Any]) -> None:
    """Put back what ``capture`` returned, perhaps after a trip through JSON."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def derive(*parts: int | str) -> int:
    """Return a seed (32 bit) that depends on all parts and on nothing else."""
    return int.from_bytes(blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest(), "big")


def reseed(*parts: int | str) -> None:
    """Let what the CPU's generators draw from here on depend on ``parts`` alone."""
    seed = derive(*parts)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def undone() -> Iterator[None]:
    """Put the CPU's generators back after the block; NumPy's takes some 70 us, so once for many samples."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Let the CPU's generators depend on ``parts`` alone inside the block; outside nothing has happened."""
    with undone():
        reseed(*parts)
        yield
