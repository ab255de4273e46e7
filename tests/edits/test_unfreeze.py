"""The normalised head: torch's own batch norm before a linear layer is the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import mmpeft
from mmpeft.handle.loading import load
from mmpeft.training.evaluation import set_training_mode

METHOD = {"method": "linear_probe", "norm": True}


def reference(model: Any) -> nn.Sequential:
    head = nn.Linear(32, 5)
    head.load_state_dict({name: getattr(model.head, name) for name in ("weight", "bias")})
    return nn.Sequential(nn.BatchNorm1d(32, affine=False, eps=1e-6), head)


def features(model: Any, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.forward_head(model.forward_features(images), pre_logits=True)


@pytest.fixture
def trained(make_case: Any) -> tuple[Any, nn.Sequential, torch.Tensor]:
    """A model and the reference after three steps on the same batches, and another batch."""
    model = make_case("lora", "vit").build()
    head = reference(model)
    adapters = mmpeft.adapt(model, METHOD, name="main")
    optimizers = [torch.optim.SGD(own, lr=0.1) for own in (adapters.parameters(), head.parameters())]
    for _ in range(3):
        images = torch.randn(8, 3, 32, 32)
        set_training_mode(model)
        outputs = model(images), head.train()(features(model, images))
        torch.testing.assert_close(*outputs)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            output.square().sum().backward()
            optimizer.step()
    return model.eval(), head.eval(), torch.randn(4, 3, 32, 32)


@torch.no_grad()
def test_it_trains_and_evaluates_as_a_batch_norm_before_the_head(trained: Any) -> None:
    model, head, images = trained
    torch.testing.assert_close(model(images), head(features(model, images)))
    assert head[0].running_var.sub(1).abs().max() > 0.01


@torch.no_grad()
def test_its_statistics_are_saved(trained: Any, make_case: Any, tmp_path: Path) -> None:
    model, _, images = trained
    handle = mmpeft.adapters(model)
    assert {key.rsplit(".", 1)[1] for key in handle.state_dict()} == {"weight", "bias", "running_mean", "running_var"}
    handle.save(tmp_path)
    fresh = make_case("lora", "vit").build()
    load(fresh, tmp_path)
    assert torch.equal(fresh(images), model(images))


@torch.no_grad()
def test_it_merges_into_the_head(trained: Any) -> None:
    model, _, images = trained
    expected, before = model(images), model.head.weight.clone()
    handle = mmpeft.adapters(model)
    handle.merge()
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    handle.unmerge()
    assert torch.equal(model.head.weight, before)
    assert torch.equal(model(images), expected)


@torch.no_grad()
def test_statistics_of_an_adapter_that_is_not_trained_stay(trained: Any) -> None:
    model, _, images = trained
    handle = mmpeft.adapters(model)
    handle.activate("main", trainable=False)
    before = {key: value.clone() for key, value in handle.state_dict().items()}
    evaluated = model(images)
    set_training_mode(model)
    assert torch.equal(model(images), evaluated)
    assert all(torch.equal(value, before[key]) for key, value in handle.state_dict().items())


def test_a_batch_of_one_is_refused_in_training(trained: Any) -> None:
    model, _, images = trained
    set_training_mode(model)
    with pytest.raises(ValueError, match=r"norm: a training batch of one sample.*train\.drop_last=true"):
        model(images[:1])
    model.eval()
    assert model(images[:1]).shape == (1, 5)


@pytest.mark.parametrize("method", [mmpeft.NormTuning, mmpeft.FullFineTuning])
def test_moving_statistics_are_asked_for_and_saved(method: type[mmpeft.NormTuning], tmp_path: Path) -> None:
    """They move as those of torch's own batch norms do; the base keeps its own, and a loaded adapter has them."""
    pictures = torch.randn(4, 3, 64, 64)

    def made() -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model("test_resnet", num_classes=3).eval()

    model, plain = made(), made()
    frozen = {name: value.clone() for name, value in model.named_buffers()}
    adapters = mmpeft.adapt(model, method(statistics=True))
    torch.testing.assert_close(model.train()(pictures), plain.train()(pictures), rtol=1e-4, atol=1e-5)
    moved = dict(plain.named_buffers())
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_buffers() if "mmpeft" not in name)
    expected = plain.eval()(pictures)
    torch.testing.assert_close(model.eval()(pictures), expected, rtol=1e-4, atol=1e-5)
    with adapters.off():
        assert torch.equal(model(pictures), made()(pictures))
        model.train()(pictures)
    twin = made()
    mmpeft.load(twin, adapters.save(tmp_path / "moved"))
    torch.testing.assert_close(twin(pictures), expected, rtol=1e-4, atol=1e-5)
    twin.train()(pictures)  # loaded, and not trained: as it was saved
    torch.testing.assert_close(twin.eval()(pictures), expected, rtol=1e-4, atol=1e-5)
    assert any((moved[name] - value).abs().max() > 1e-2 for name, value in frozen.items() if "mean" in name)
    model.eval()
    adapters.merge()
    torch.testing.assert_close(model(pictures), expected, rtol=1e-4, atol=1e-5)
    adapters.unmerge()
    adapters.remove()
    assert all(torch.equal(value, frozen[name]) for name, value in model.named_buffers())
