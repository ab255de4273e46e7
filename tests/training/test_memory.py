import os

import torch

from mmpeft.training import memory


def test_peak_is_what_was_held_since_the_reset() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def hold(mebibytes: int) -> None:
        torch.ones(mebibytes * 2**18, device=device)

    hold(300)
    memory.reset_peak()
    floor = memory.peak_bytes()
    hold(100)
    grown = memory.peak_bytes() - floor
    assert 60 * 2**20 < grown < 200 * 2**20
    assert ("GPU" if device == "cuda" else "resident") in memory.kind()


def test_available_memory_is_a_part_of_all() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 2**20 < memory.available_bytes() < total
