from pathlib import Path

import pytest
import torch

from mmpeft.training.run import checkpoints
from mmpeft.training.run.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint


def test_round_trip_and_only_two_kept(tmp_path: Path) -> None:
    groups = {"weights": {"a.b": torch.randn(2, 3).T}, "optimizer": {"a.b/step": torch.tensor(3.0)}, "best": {}}
    for step in (0, 9, 10, 11):
        save_checkpoint(tmp_path, step, groups, {"step": step})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_11"]
    loaded, state = load_checkpoint(find_checkpoint(tmp_path, "latest"))
    assert state == {"step": 11}
    assert torch.equal(loaded["weights"]["a.b"], groups["weights"]["a.b"])
    assert torch.equal(loaded["optimizer"]["a.b/step"], torch.tensor(3.0))


def test_a_save_that_fails_leaves_the_checkpoints_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"weights": {"a": torch.ones(1)}}, {})

    def half_written(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints, "save_file", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, 3, {"weights": {"a": torch.ones(1)}}, {})
    assert find_checkpoint(tmp_path, "latest").name == "step_2"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "step_2"]


def test_what_cannot_be_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.resume: 'latest' finds no checkpoint"):
        find_checkpoint(tmp_path, "latest")
    with pytest.raises(ValueError, match=r"train\.resume: 'last' is no checkpoint"):
        find_checkpoint(tmp_path, "last")
