from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mmpeft.training.prefix_cache.store import DiskStore


def samples(*names: str, shift: float = 0.0) -> list[dict[str, Any]]:
    return [{"id": name, "image": torch.full((3, 2, 2), float(len(name))) + shift} for name in names]


def test_rows_come_back_in_another_process(tmp_path: Path) -> None:
    values = torch.randn(3, 4, 5).to(torch.bfloat16)
    store = DiskStore(tmp_path)
    assert not store.extend(samples("a", "bb"))
    store.write(values[:2])
    assert not store.extend(samples("ccc"))
    store.write(values[2:])
    again = DiskStore(tmp_path)
    assert again.extend(samples("ccc", "a"))
    assert again.extend(samples("bb"))
    assert all(torch.equal(again.read(row), values[at]) for row, at in enumerate((2, 0, 1)))


@pytest.mark.parametrize("changed", [samples("x"), samples("a", shift=1e-6)])
def test_another_id_or_image_is_not_found(tmp_path: Path, changed: list[dict[str, Any]]) -> None:
    store = DiskStore(tmp_path)
    store.extend(samples("a"))
    store.write(torch.zeros(1, 2))
    assert DiskStore(tmp_path).extend(samples("a"))
    assert not DiskStore(tmp_path).extend(changed)


def test_half_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00")
    (tmp_path / ".unfinished.partial.safetensors").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"train\.cache: .*broken\.safetensors is no complete safetensors file, delete"
    ):
        DiskStore(tmp_path)
