"""Zero-shot accuracies of a CLIP model on drawn scenes and on real digits, in percent."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mmpeft.data.config import DataConfig
from mmpeft.data.drawing import draw
from mmpeft.data.readers.digits import read_digits
from mmpeft.data.readers.scenes import scenes_of
from mmpeft.data.scenes import COLOURS, SEEN_STYLES, SHAPES, UNSEEN_STYLES, Scene, is_held_out

PROMPT = "a photo of a {}."
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COMBINATIONS = [(shape, colour) for shape in SHAPES for colour in COLOURS]
Tokenizer = Callable[[list[str]], torch.Tensor]


@torch.no_grad()
def accuracy(
    model: nn.Module, tokenizer: Tokenizer, pictures: Sequence[Image.Image], names: Sequence[str], labels: Sequence[int]
) -> float:
    """Say which name fits each picture best; return how often that is right, in percent."""
    text = F.normalize(model.encode_text(tokenizer([PROMPT.format(name) for name in names])), dim=1)
    raw = np.stack(
        [np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)) for picture in pictures]
    )
    images = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 127.5 - 1
    found = torch.cat([model.encode_image(part) @ text.T for part in images.split(250)]).argmax(1)
    return round(100 * (found == torch.tensor(labels)).float().mean().item(), 1)


def measure(model: nn.Module, tokenizer: Tokenizer, per_style: int | None = None) -> dict[str, float]:
    """Measure shapes (chance 8.3 %), shape and colour (chance 1.0 %) in seen styles, unseen styles, and digits.

    Args:
        model: An open_clip model.
        tokenizer: Its tokenizer.
        per_style: Every how-manieth scene is enough for a glance: about so many of each style; None takes all.
    """
    step = 1 if per_style is None else 1920 // per_style
    scenes = {style: scenes_of(style)[::step] for style in SEEN_STYLES + UNSEEN_STYLES}
    seen = [scene for style in SEEN_STYLES for scene in scenes[style]]
    found = {}
    for title, held in (("seen", False), ("held_out", True)):
        part = [scene for scene in seen if is_held_out(scene.shape, scene.colour) == held]
        found[f"shape, {title} combinations"] = _shapes(model, tokenizer, part)
        names = [f"{colour} {shape}" for shape, colour in COMBINATIONS]
        labels = [COMBINATIONS.index((scene.shape, scene.colour)) for scene in part]
        found[f"shape and colour, {title} combinations"] = accuracy(
            model, tokenizer, [draw(s) for s in part], names, labels
        )
    for style in UNSEEN_STYLES:
        found[f"shape, {style}"] = _shapes(model, tokenizer, scenes[style])
    digits = read_digits(DataConfig(name="digits"))[::step]
    pictures, labels = [sample.open() for sample in digits], [int(str(sample.label)) for sample in digits]
    return found | {"digits": accuracy(model, tokenizer, pictures, [f"digit {name}" for name in DIGITS], labels)}


def _shapes(model: nn.Module, tokenizer: Tokenizer, scenes: Sequence[Scene]) -> float:
    labels = [SHAPES.index(scene.shape) for scene in scenes]
    return accuracy(model, tokenizer, [draw(scene) for scene in scenes], SHAPES, labels)
