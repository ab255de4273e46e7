"""What the tests of the classifier share: tokenizers of three kinds, images, and adapters moved from their start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import mmpeft

CLASSES = ("disc", "red ring", "star")
TEMPLATES = ("a {}.", "one more {}.")
LENGTH = 9


def ids(text: str) -> list[int]:
    return [7 if word == "." else 8 + ord(word[0].lower()) % 38 for word in text.replace(".", " .").split()]


def marked(texts: list[str]) -> Tensor:
    """Tokenize as CLIP does: a start, an end that is never cut off, and padding, which is also a word's id."""
    rows = [[*[48, *ids(text)][: LENGTH - 1], 49] for text in texts]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])


def unmarked(texts: list[str]) -> Tensor:
    """Tokenize as SigLIP does: no start, and an end that is also the padding; no word for a full stop."""
    rows = [[number for number in ids(text) if number != 7][: LENGTH - 1] for text in texts]
    return torch.tensor([row + [1] * (LENGTH - len(row)) for row in rows])


def framed(texts: list[str]) -> Tensor:
    """Tokenize as CLIPA does: a start and no end."""
    rows = [[48, *ids(text)][:LENGTH] for text in texts]
    return torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def adapt(model: Any, method: str, name: str = "main", seed: int = 1, **options: Any) -> Any:
    adapters = mmpeft.adapt(model, {"method": method, **options}, name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapters.parameters(name):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapters


@contextmanager
def text_passes(model: Any) -> Iterator[list[int]]:
    """Within this context, list how many texts each pass of the text tower gets."""
    seen: list[int] = []
    hook = model.backbone.text.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    try:
        yield seen
    finally:
        hook.remove()


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)
