"""Points 1, 2, 5 and 6 of the matrix: identity, gradients, files, merging and removing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmpeft
from mmpeft.edits import Merges


def snapshot(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "keys": list(model.state_dict()),
        "modules": [(path, type(module)) for path, module in model.named_modules()],
        "attributes": {path: sorted(module.__dict__) for path, module in model.named_modules()},
        "hooks": sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        "trainable": [name for name, parameter in model.named_parameters() if parameter.requires_grad],
    }


def base_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("mmpeft.")}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@torch.no_grad()
def test_starts_as_the_frozen_model(case: Any) -> None:
    model = case.build()
    frozen = case.run(model)
    adapters = case.adapt(model)
    if case.facts.start:
        assert not case.same(case.run(model), frozen)
    elif case.model in ("open_clip", "siglip", "zero_shot"):
        torch.testing.assert_close(case.run(model), frozen, rtol=1e-5, atol=1e-6)
    else:
        assert case.same(case.run(model), frozen)
    case.adapt(model, "moved", seed=1)
    assert not case.same(case.run(model), frozen)
    with adapters.off():
        assert case.same(case.run(model), frozen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_its_parameters_and_nothing_else(case: Any, dtype: torch.dtype) -> None:
    model = case.build().to(dtype)
    before, batch = base_of(model), case.batch()
    batch = batch.to(dtype) if batch.is_floating_point() else batch
    adapters = case.adapt(model)
    start = {key: value.detach().clone() for key, value in adapters.named_parameters()}
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-2, weight_decay=0.1)
    model.train()
    for step in range(20):
        case.run(model, batch).float().square().mean().backward()
        if step == 1:
            adapters.check_gradients()
        optimizer.step()
        optimizer.zero_grad()
    own = {id(parameter) for parameter in adapters.parameters()}
    assert all(p.grad is None and not p.requires_grad for p in model.parameters() if id(p) not in own)
    assert equal(base_of(model), before)
    assert all(not torch.equal(value, start[key]) for key, value in adapters.named_parameters())


def test_saved_and_loaded_it_is_the_same(case: Any, tmp_path: Path) -> None:
    model = case.build()
    case.adapt(model, seed=1).save(tmp_path)
    fresh = case.build()
    mmpeft.load(fresh, tmp_path)
    with torch.no_grad():
        assert case.same(case.run(fresh), case.run(model))


@torch.no_grad()
def test_merging_changes_nothing_and_is_undone_to_the_bit(case: Any) -> None:
    model = case.build()
    plain, before = snapshot(model), base_of(model)
    adapters = case.adapt(model, seed=1)
    adapted = case.run(model)
    try:
        adapters.merge()
    except ValueError as error:
        assert "can't be merged into weights" in str(error)
        places = adapters.parts("main")[""].places
        assert any(
            edit.count or not isinstance(edit, Merges) or edit.shifts or getattr(site, "shared", False)
            for site, edit, _ in places
        )
    else:
        torch.testing.assert_close(case.run(model), adapted, rtol=1e-4, atol=1e-5)
        assert not equal(base_of(model), before)
        adapters.unmerge()
    assert case.same(case.run(model), adapted)
    assert equal(base_of(model), before)
    adapters.remove()
    assert equal(dict(model.state_dict()), before)
    assert snapshot(model) == plain


def test_these_methods_merge(home: Any) -> None:
    adapters = home.adapt(home.build())
    if home.facts.merges:
        adapters.merge()
        assert adapters.trees[""].merged
    else:
        with pytest.raises(ValueError, match=r"is no change of a weight|has a gate"):
            adapters.merge()


def test_lacking_sites_are_named_and_nothing_is_touched(lacking: Any) -> None:
    model = lacking.build()
    plain = snapshot(model)
    reasons = r"has no \w+ site|has no tower|no access to the residual stream|no whole number|"
    reasons += "no site (with patches|for)|trains biases"
    with pytest.raises(ValueError, match=reasons):
        lacking.adapt(model)
    assert snapshot(model) == plain
