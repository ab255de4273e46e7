"""Point 8 of the matrix: every method learns real digits on the embedded backbone; its task head stays random."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmpeft

MARGIN = 0.2
RATES = {
    **dict.fromkeys(("adaptformer", "houlsby", "linear_probe", "pfeiffer"), 5e-3),
    **dict.fromkeys(("full_fine_tuning", "parallel_adapter"), 1e-3),
    **dict.fromkeys(("bitfit", "ia3", "norm_tuning", "ssf", "vpt"), 3e-2),
}
"""Learning rates that are not 0.01."""


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))[:500]
    images = torch.from_numpy(data.images).float()[order, None] / 8 - 1
    return F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1), torch.from_numpy(data.target)[order]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


@pytest.mark.parametrize("name", mmpeft.methods())
def test_it_learns(name: str, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    torch.manual_seed(0)
    model: Any = mmpeft.load_model("tiny/vit", num_classes=10)
    nn.init.orthogonal_(model.head.weight)
    frozen = accuracy(model, images[200:], labels[200:])
    adapters = mmpeft.adapt(model, {"method": name} | ({"bottleneck": 32} if name == "parallel_adapter" else {}))
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=RATES.get(name, 1e-2), weight_decay=0)
    model.train()
    for _ in range(30):
        batch = torch.randint(0, 200, (32,))
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert accuracy(model, images[200:], labels[200:]) > frozen + MARGIN
