"""A picture of what a segmentation model sees: image, truth and prediction side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.data import DataSplits
from mmpeft.data.masks import class_shares
from mmpeft.data.samples import IGNORED
from mmpeft.files import replaced_file
from mmpeft.heads.segmentation import Segmenter


@torch.no_grad()
def answer_by_mask(model: Segmenter, data: DataSplits, index: int, output: Path) -> Prediction:
    """Return a test image and the share of its pixels that each class gets, and draw it in the run directory."""
    sample, item = data.test.samples[checked_index(data.test, index)], data.test[index]
    predicted = model(item["image"][None]).argmax(1)[0]
    path = output / f"prediction_{index}.png"
    draw_segmentation(item["image"], item["mask"], predicted, data.classes, path)
    return Prediction(sample=sample, shares=class_shares(predicted, data.classes), picture=path)


def draw_segmentation(image: Tensor, truth: Tensor, predicted: Tensor, classes: tuple[str, ...], path: Path) -> None:
    """Draw an image (3, height, width) of any range of values beside two masks (height, width), and their classes.

    What belongs to no class is white.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    shown = (image - image.min()) / (image.max() - image.min())
    pictures = (shown.permute(1, 2, 0).numpy(), _coloured(truth), _coloured(predicted))
    for axes, title, picture in zip(figure.subplots(1, 3), ("image", "truth", "prediction"), pictures, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set(title=title, xticks=[], yticks=[])
    present = sorted({*truth.unique().tolist(), *predicted.unique().tolist()} - {IGNORED})
    patches = [Patch(color=_palette()[index], label=classes[index]) for index in present]
    figure.legend(handles=patches, loc="outside right center")
    with replaced_file(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _palette() -> np.ndarray:
    """Return colours (256, 3): twenty that repeat, and white for ``IGNORED``."""
    palette = colormaps["tab20"](np.arange(IGNORED + 1) % 20)[:, :3]
    palette[IGNORED] = 1
    return palette


def _coloured(mask: Tensor) -> np.ndarray:
    return _palette()[mask.numpy()]
