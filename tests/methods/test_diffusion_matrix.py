"""Points 2, 5, 6 and 7 of the matrix for the methods of denoisers, which need a condition."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import unet
from torch import Tensor

import mmpeft

BATCH = 2
IMAGES = torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(2))
FEATURES = torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(3))
POSITIONS = torch.randn(BATCH, 5, 16, generator=torch.Generator().manual_seed(3))
MAPS = torch.rand(BATCH, 3, 64, 64, generator=torch.Generator().manual_seed(4))
CASES: dict[str, tuple[Any, Tensor | None]] = {
    "controlnet": (mmpeft.ControlNet(widths=(8, 16)), IMAGES),
    "t2i_adapter": (mmpeft.T2IAdapter(factor=16), MAPS),
    "ip_adapter": (mmpeft.IPAdapter(features=16), FEATURES),
    "ip_adapter_plus": (mmpeft.IPAdapter(features=16, resampler=True, depth=1, heads=1, width=16), POSITIONS),
    "custom_diffusion": (mmpeft.CustomDiffusion(queries=True), None),
}
STEPS = 6


@pytest.fixture(params=CASES)
def name(request: Any) -> str:
    return str(request.param)


def build() -> Any:
    torch.manual_seed(0)
    model = unet(
        block_out_channels=(8, 8), attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model.eval().requires_grad_(False)


def adapt(model: Any, name: str, seed: int | None = None, own: str = "main") -> mmpeft.Adapters:
    """Graft the method in; with a ``seed`` every adapter weight is moved away from its start."""
    adapters = mmpeft.adapt(model, CASES[name][0], name=own)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapters.parameters(own):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapters


@contextmanager
def given(model: Any, name: str, dtype: torch.dtype = torch.float32) -> Iterator[None]:
    """Hand the method's condition to every adapter of a model that takes one."""
    adapters, condition = mmpeft.adapters(model), CASES[name][1]
    if condition is None:
        yield
    else:
        with adapters.given(dict.fromkeys(adapters.names, condition.to(dtype))):
            yield


def run(model: Any, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, text = (torch.randn(s, generator=generator).to(dtype) for s in ((BATCH, 4, 8, 8), (BATCH, 5, 24)))
    with given(model, name, dtype):
        output: Tensor = model(sample, torch.tensor([3, 700]), text).sample
    return output


def base_of(model: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("mmpeft.")}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trains_its_parameters_and_nothing_else(name: str, dtype: torch.dtype) -> None:
    model = build().to(dtype)
    before = base_of(model)
    adapters = adapt(model, name)
    start = {key: value.detach().clone() for key, value in adapters.named_parameters()}
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-2, weight_decay=0.1)
    model.train()
    for _ in range(STEPS):
        run(model, name, dtype).float().square().mean().backward()
        adapters.check_gradients()
        optimizer.step()
        optimizer.zero_grad()
    own = {id(parameter) for parameter in adapters.parameters()}
    assert all(p.grad is None and not p.requires_grad for p in model.parameters() if id(p) not in own)
    assert equal(base_of(model), before)
    assert all(not torch.equal(value, start[key]) for key, value in adapters.named_parameters())


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    model = build()
    adapt(model, name, seed=1).save(tmp_path)
    fresh = build()
    mmpeft.load(fresh, tmp_path)
    assert torch.equal(run(fresh, name), run(model, name))


@torch.no_grad()
def test_removing_it_leaves_the_frozen_model(name: str) -> None:
    model = build()
    frozen, before = run(model, "custom_diffusion"), base_of(model)
    adapters = adapt(model, name, seed=1)
    adapted = run(model, name)
    assert not torch.allclose(adapted, frozen)
    with adapters.off():
        assert torch.equal(run(model, name), frozen)
    if name == "custom_diffusion":
        adapters.merge()
        torch.testing.assert_close(run(model, name), adapted, rtol=1e-4, atol=1e-5)
        adapters.unmerge()
    else:
        with pytest.raises(ValueError, match="can't be merged into weights"):
            adapters.merge()
    assert torch.equal(run(model, name), adapted)
    adapters.remove()
    assert equal(dict(model.state_dict()), before)
    assert torch.equal(run(model, "custom_diffusion"), frozen)


@torch.no_grad()
def test_two_adapters_switch_and_leave_each_other_alone(name: str) -> None:
    model = build()
    adapters = adapt(model, name, seed=1, own="a")
    a = run(model, name)
    adapt(model, name, seed=2, own="b")
    b = run(model, name)
    adapters.activate("a", "b", weights=[1.0, 0.0])
    torch.testing.assert_close(run(model, name), a, rtol=1e-4, atol=1e-5)
    adapters.activate("a")
    assert torch.equal(run(model, name), a)
    assert not torch.allclose(a, b)
    adapters.remove("b")
    assert torch.equal(run(model, name), a)


@torch.no_grad()
def test_copies_and_pickles_are_independent(name: str) -> None:
    model = build()
    adapters = adapt(model, name, seed=1)
    before = run(model, name)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    twins = copy.deepcopy(model), torch.load(buffer, weights_only=False)
    for parameter in adapters.parameters():
        parameter.add_(1.0)
    assert not torch.equal(run(model, name), before)
    adapters.remove()
    assert all(torch.equal(run(twin, name), before) for twin in twins)


def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    model = build().train()
    adapters = adapt(model, name, seed=1)
    found = []
    for _ in range(2):
        with given(model, name):
            found.append(torch.autograd.grad(run(model, name).square().sum(), adapters.parameters()))
        model.enable_gradient_checkpointing()
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-5)


def test_bf16_autocast_trains_close_to_fp32(name: str) -> None:
    model = build()
    adapters = adapt(model, name, seed=1)
    exact = run(model, name).detach()
    with torch.autocast("cpu", torch.bfloat16):
        rough = run(model, name)
    rough.float().square().mean().backward()
    adapters.check_gradients()
    torch.testing.assert_close(rough.float(), exact, rtol=0.1, atol=0.1 * float(exact.abs().max()))
