"""Point 8 of the matrix: every method learns on an embedded backbone.

Those of one tower learn real digits, with a task head that stays random; those of two towers drawn scenes in a style
that the backbone never saw, from the names of the shapes and eight pictures of each.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmpeft

MARGIN = 0.2
FEW_SHOT_MARGIN = 0.1
SHOTS = 8
RATES = {
    **dict.fromkeys(("adaptformer", "houlsby", "linear_probe", "pfeiffer"), 5e-3),
    **dict.fromkeys(("full_fine_tuning", "parallel_adapter", "mam"), 1e-3),
    **dict.fromkeys(("llm_adapter_lora", "llm_adapter_parallel", "llm_adapter_series"), 1e-3),
    "prefix_tuning": 1e-1,
    **dict.fromkeys(("bitfit", "ia3", "norm_tuning", "ssf", "vpt"), 3e-2),
}
"""Learning rates that are not 0.01."""
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"bottleneck": 32} for name in ("parallel_adapter", "mam")},
    "prefix_tuning": {"hidden": None},
}
"""Options that are not the defaults: thirty steps are few for a network that makes prefixes."""
TWO_TOWERS: dict[str, tuple[dict[str, Any], float]] = {
    "coop": ({"tokens": 4}, 2e-3),
    "cocoop": ({"tokens": 4}, 2e-3),
    "maple": ({"layers": "first:3"}, 3e-3),
    "ivlp": ({}, 3e-3),
    "promptsrc": ({"layers": "first:3"}, 3e-3),
    "clip_adapter": ({}, 3e-3),
    "clip_lora": ({}, 3e-3),
    "tip_adapter": ({"shots": SHOTS, "trained": True, "alpha": 10.0, "beta": 5.5}, 1e-3),
}
"""Options and learning rates."""


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


@pytest.fixture(scope="module")
def scenes() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return pictures and labels to train on, then those to test on, twenty of each class."""
    from mmpeft.data import DataConfig
    from mmpeft.data.drawing import draw
    from mmpeft.data.readers.scenes import PER_SHAPE, scenes_of
    from mmpeft.data.scenes import SHAPES
    from mmpeft.data.transforms import make_transforms

    _, transform = make_transforms(DataConfig(name="scenes"), mmpeft.load_model("tiny/clip"))
    drawn = scenes_of("neon")
    numbers = [(number, label) for label in range(len(SHAPES)) for number in range(SHOTS + 20)]
    pictures = torch.stack([transform(draw(drawn[label * PER_SHAPE + number])) for number, label in numbers])
    labels = torch.tensor([label for _, label in numbers])
    trains = torch.tensor([number < SHOTS for number, _ in numbers])
    return pictures[trains], labels[trains], pictures[~trains], labels[~trains]


DIFFUSION = {name for name, method in mmpeft.methods().items() if method.__module__ == "mmpeft.methods.diffusion"}
"""What these learn is measured in docs/diffusion.md."""
ELSEWHERE = {"adapter_fusion", "ladder_side_tuning", "p_tuning", "prompt_tuning"}
"""Methods that need other adapters in the model, or words."""


@pytest.mark.parametrize(
    "name", sorted({*mmpeft.methods()} - DIFFUSION - ELSEWHERE - TWO_TOWERS.keys() | {"clip_adapter", "clip_lora"})
)
def test_it_learns(name: str, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    torch.manual_seed(0)
    model: Any = mmpeft.load_model("tiny/vit", num_classes=10)
    nn.init.orthogonal_(model.head.weight)
    frozen = accuracy(model, images[200:], labels[200:])
    adapters = mmpeft.adapt(model, {"method": name} | OPTIONS.get(name, {}))
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=RATES.get(name, 1e-2), weight_decay=0)
    model.train()
    for _ in range(30):
        batch = torch.randint(0, 200, (32,))
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert accuracy(model, images[200:], labels[200:]) > frozen + MARGIN


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_it_learns_from_few_pictures(name: str, scenes: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    from mmpeft.data.scenes import SHAPES

    images, labels, *test = scenes
    options, rate = TWO_TOWERS[name]
    model: Any = mmpeft.zero_shot("tiny/clip", SHAPES)
    frozen = accuracy(model, *test)
    torch.manual_seed(0)
    adapters = mmpeft.adapt(model, {"method": name, **options})
    if name == "tip_adapter":
        with torch.no_grad():
            adapters._edits("main")[0].fill(model.joint.image(images), labels)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=rate, weight_decay=0)
    model.train()
    for _ in range(60):
        batch = torch.randint(0, len(labels), (16,))
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = accuracy(model, *test)
    assert found > frozen + FEW_SHOT_MARGIN, f"{name}: {frozen:.3f} -> {found:.3f}"
