"""Adapters of several modules: each method goes where its sites are."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import mmpeft


@pytest.fixture
def parts() -> dict[str, nn.Module]:
    """Two vision transformers, and a convolutional network without attention."""
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    vit = timm.models.vision_transformer.VisionTransformer
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    return {"first": vit(**size), "second": vit(**size), "third": convolutions}


def places(adapters: mmpeft.Adapters) -> dict[str, set[str]]:
    return {
        label: {key.rpartition(".")[2] for _, _, key in part.places}
        for label, part in adapters.parts().items()
        if part.places
    }


def test_each_method_goes_where_its_sites_are(parts: Any) -> None:
    adapters = mmpeft.adapt(parts, [mmpeft.LoRA(rank=2), mmpeft.BitFit()])
    assert places(adapters) == {"first": {"lora", "bitfit"}, "second": {"lora", "bitfit"}, "third": {"bitfit"}}


def test_a_label_limits_a_method_to_one_module(parts: Any) -> None:
    methods = [mmpeft.LoRA(rank=2, towers="second"), mmpeft.AdaptFormer(bottleneck=2, towers=("first",))]
    assert places(mmpeft.adapt(parts, methods)) == {"first": {"adaptformer"}, "second": {"lora"}}


def test_a_method_without_sites_anywhere_is_an_error(parts: Any) -> None:
    with pytest.raises(ValueError, match=r"first: .* no linear site or conv\w+ 'cross.k'[\s\S]*second: [\s\S]*third: "):
        mmpeft.adapt(parts, [mmpeft.LoRA(rank=2), mmpeft.LoRA(targets="cross.k")])
    assert not any("mmpeft" in part._modules for part in parts.values())


def test_it_comes_back(parts: Any, tmp_path: Any) -> None:
    adapters = mmpeft.adapt(parts, [mmpeft.LoRA(rank=2, towers="second"), mmpeft.BitFit()])
    state = {key: value.clone() for key, value in adapters.state_dict().items()}
    adapters.save(tmp_path / "both")
    adapters.remove()
    loaded = mmpeft.load(parts, tmp_path / "both").state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
