"""A tiny timm ViT, always with the same weights, and images for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import mmpeft

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


def make_vit(**changed: Any) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    return timm.create_model("vit_tiny_patch16_224", **shape | changed).eval()


def make_adapted(methods: object, name: str = "main") -> tuple[nn.Module, mmpeft.Adapters]:
    model = make_vit()
    handle = mmpeft.adapt(model, methods, name)
    shake(handle.parameters())
    return model, handle


def shake(parameters: list[nn.Parameter]) -> None:
    """Move weights far from where the model is unchanged."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.fixture
def vit() -> Callable[..., nn.Module]:
    return make_vit


@pytest.fixture
def adapted() -> Callable[..., tuple[nn.Module, mmpeft.Adapters]]:
    return make_adapted


@pytest.fixture
def shaken() -> Callable[[list[nn.Parameter]], None]:
    return shake


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
