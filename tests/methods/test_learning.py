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
FOR_CLIP = ("clip_adapter", "clip_lora")
"""Made for models of text and images, with sites in all."""


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


FACTS = {name: method.facts for name, method in mmpeft.methods().items() if not method.facts.tested_by}
ON_DIGITS = sorted(name for name, facts in FACTS.items() if "vision" not in facts.lacks)
ON_SCENES = [*sorted(name for name in FACTS.keys() - {*ON_DIGITS} if "zero_shot" not in FACTS[name].lacks), *FOR_CLIP]
"""Methods that have sites in a vision transformer, and those for models of text and images; test_soft_prompts.py and
test_ladder.py have those for language models only."""


@pytest.mark.parametrize("name", ON_DIGITS)
def test_it_learns(name: str, digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    torch.manual_seed(0)
    model: Any = mmpeft.load_model("tiny/vit", num_classes=10)
    nn.init.orthogonal_(model.head.weight)
    frozen = accuracy(model, images[200:], labels[200:])
    adapters = mmpeft.adapt(model, {"method": name, **FACTS[name].learns})
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=FACTS[name].rate, weight_decay=0)
    model.train()
    for _ in range(30):
        batch = torch.randint(0, 200, (32,))
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert accuracy(model, images[200:], labels[200:]) > frozen + MARGIN


@pytest.mark.parametrize("name", ON_SCENES)
def test_it_learns_from_few_pictures(name: str, scenes: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    from mmpeft.data.scenes import SHAPES

    images, labels, *test = scenes
    model: Any = mmpeft.zero_shot("tiny/clip", SHAPES)
    frozen = accuracy(model, *test)
    torch.manual_seed(0)
    adapters = mmpeft.adapt(model, {"method": name, **FACTS[name].learns})
    if name == "tip_adapter":
        with torch.no_grad():
            adapters._edits("main")[0].fill(model.joint.image(images), labels)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=FACTS[name].rate, weight_decay=0)
    model.train()
    for _ in range(60):
        batch = torch.randint(0, len(labels), (16,))
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    found = accuracy(model, *test)
    assert found > frozen + FEW_SHOT_MARGIN, f"{name}: {frozen:.3f} -> {found:.3f}"
