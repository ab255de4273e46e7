"""Tip-Adapter's caches: keys lie transposed, trained keys are a bare parameter the other way round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmpeft
from mmpeft.formats import convert

SHOTS, CLASSES, WIDTH = 4, 3, 16


@pytest.fixture
def caches(tmp_path: Path) -> dict[str, Tensor]:
    torch.manual_seed(5)
    keys = F.normalize(torch.randn(SHOTS * CLASSES, WIDTH), dim=-1)
    values = F.one_hot(torch.arange(SHOTS * CLASSES) % CLASSES).half()
    trained = nn.Parameter(torch.randn(SHOTS * CLASSES, WIDTH))
    torch.save(keys.T, tmp_path / f"keys_{SHOTS}shots.pt")
    torch.save(values, tmp_path / f"values_{SHOTS}shots.pt")
    torch.save(trained, tmp_path / f"best_F_{SHOTS}shots.pt")
    return {"keys": keys, "values": values.float(), "trained": trained.data}


@pytest.mark.parametrize("trained", [False, True])
@torch.no_grad()
def test_the_cache_is_the_papers(trained: bool, caches: dict[str, Tensor], make_case: Any, tmp_path: Path) -> None:
    options = {"alpha": 1.5, "beta": 5.5}
    assert convert(tmp_path, tmp_path / "ours", "tip_adapter", trained=trained, **options) == []
    case = make_case("tip_adapter", "zero_shot")
    model = case.build()
    before, image = model(case.batch()), F.normalize(model.backbone.encode_image(case.batch()), dim=-1)
    handle = mmpeft.load(model, tmp_path / "ours")
    keys = caches["trained"] if trained else caches["keys"]
    expected = before + 1.5 * (-5.5 * (1 - image @ keys.T)).exp() @ caches["values"]
    torch.testing.assert_close(model(case.batch()), expected, atol=1e-5, rtol=1e-5)
    assert (model(case.batch()) - before).abs().max() > 1e-3
    assert handle.methods()[0].label() == ("Tip-Adapter-F" if trained else "Tip-Adapter")


@torch.no_grad()
def test_alpha_and_beta_are_exact_in_double_precision(make_case: Any, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    keys = F.normalize(torch.randn(SHOTS * CLASSES, WIDTH, dtype=torch.float64, generator=generator), dim=-1)
    values = F.one_hot(torch.arange(SHOTS * CLASSES) % CLASSES).double()
    torch.save(keys.T, tmp_path / f"keys_{SHOTS}shots.pt")
    torch.save(values, tmp_path / f"values_{SHOTS}shots.pt")
    convert(tmp_path, tmp_path / "ours", "tip_adapter", alpha=1.17, beta=5.3)
    case = make_case("tip_adapter", "zero_shot")
    model, batch = case.build().double(), case.batch().double()
    before, image = model(batch), F.normalize(model.backbone.encode_image(batch), dim=-1)
    expected = before + 1.17 * (-5.3 * (1 - image @ keys.T)).exp() @ values
    handle = mmpeft.load(model, tmp_path / "ours")
    torch.testing.assert_close(model(batch), expected, atol=1e-12, rtol=1e-12)
    handle.remove()
    (cache,) = mmpeft.adapt(model, mmpeft.TipAdapter(shots=2, alpha=1.17, beta=5.3))._edits("main")
    assert (cache.alpha.item(), cache.beta.item()) == (1.17, 5.3)


def test_what_is_not_said_is_assumed(caches: dict[str, Tensor], tmp_path: Path) -> None:
    notes = convert(tmp_path, tmp_path / "ours", "tip_adapter")
    assert [note.partition(" assumed")[0] for note in notes] == ["alpha=1.0", "beta=1.0"]
    torch.save(caches["values"].half(), tmp_path / "values_1shots.pt")
    with pytest.raises(ValueError, match=r"shots: .* holds values of \[1, 4\] shots: give the one to read"):
        convert(tmp_path, tmp_path / "other", "tip_adapter")
    with pytest.raises(ValueError, match=r"holds no keys_1shots.pt"):
        convert(tmp_path, tmp_path / "other", "tip_adapter", shots=1)
    torch.save(caches["keys"].T, tmp_path / "keys_1shots.pt")
    with pytest.raises(ValueError, match="12 samples of 3 classes are not 1 of each"):
        convert(tmp_path, tmp_path / "other", "tip_adapter", shots=1)
    torch.save(caches["keys"], tmp_path / "keys_4shots.pt")
    with pytest.raises(ValueError, match=r"keys_4shots.pt: shape \(12, 16\), the others need \(12, 12\)"):
        convert(tmp_path, tmp_path / "other", "tip_adapter", shots=4)
    assert not (tmp_path / "other").exists()
