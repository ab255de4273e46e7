"""How a picture becomes as large as the denoiser wants it: resized, cut, mirrored, and perhaps set on empty ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmpeft.data.pictures import check_shape

Size = tuple[int, int]
FAR, SMALL, LARGE = 1 / 3, 0.6, (1.2, 1.4)
"""Of Custom Diffusion: the smallest share of a side that a picture takes, where small ends, zooming in."""
PREFIXES = {"small": ("a far away ", "very small "), "large": ("zoomed in ", "close up ")}


@dataclass(frozen=True)
class Frame:
    """Where one picture goes: resized, cut to ``size`` at ``corner``, mirrored; ``pasted`` as large as this, where."""

    original: Size
    resized: Size
    corner: Size
    size: Size
    flipped: bool = False
    pasted: tuple[int, int, int] | None = None
    """Side, top and left of the whole on an empty ground."""
    prefix: str = ""

    @property
    def numbers(self) -> Tensor:
        """Original size, corner and size: what SDXL is told."""
        return torch.tensor([*self.original, *self.corner, *self.size])

    def cut(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
        """Return a picture, or what belongs to its places, through the frame; without what is empty around it."""
        image = image.resize(self.resized[::-1], resample)
        top, left = self.corner
        image = image.crop((left, top, left + self.size[1], top + self.size[0]))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else image

    def placed(self, image: Image.Image, values: tuple[float, float] = (-1.0, 1.0)) -> Tensor:
        """Return what was cut, (channels, height, width) from black to white in ``values``; 0 around what is pasted."""
        low, high = values
        if self.pasted is None:
            return torch.from_numpy(_array(image)) * (high - low) + low
        side, top, left = self.pasted
        small = torch.from_numpy(_array(image.resize((side, side), Image.Resampling.LANCZOS))) * (high - low) + low
        canvas = torch.zeros(len(small), *self.size)
        canvas[:, top : top + side, left : left + side] = small
        return canvas

    def inside(self, margin: int) -> Tensor:
        """Return a mask (height, width) of the part with the picture, less a margin where there is empty ground."""
        if self.pasted is None:
            return torch.ones(self.size)
        side, top, left = self.pasted
        mask = torch.zeros(self.size)
        mask[top + margin : top + side - margin, left + margin : left + side - margin] = 1
        return mask


def _array(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255


@dataclass(frozen=True)
class Framing:
    """Draws frames of about ``resolution`` squared pixels: squares, or with a ``step`` of the picture's shape."""

    resolution: int
    step: int | None = None

    @cached_property
    def buckets(self) -> list[Size]:
        """The shapes, no side more than twice the other."""
        if self.step is None:
            return [(self.resolution, self.resolution)]
        widths = range(self.step, 2 * self.resolution, self.step)
        pairs = [(self.resolution**2 // width // self.step * self.step, width) for width in widths]
        return [(height, width) for height, width in pairs if height and 0.5 <= height / width <= 2]

    def bucket(self, original: Size) -> int:
        """Return the index of the shape nearest to a picture's, by the ratio of its sides."""
        ratio = original[0] / original[1]
        distances = [abs(np.log(height / width / ratio)) for height, width in self.buckets]
        return int(np.argmin(distances))

    def plain(self, original: Size) -> Frame:
        """Return the frame that is always the same: as much of the picture as fits, cut at the centre."""
        size = self.buckets[self.bucket(original)]
        scale = max(size[0] / original[0], size[1] / original[1])
        resized = (max(round(original[0] * scale), size[0]), max(round(original[1] * scale), size[1]))
        check_shape(*resized)
        return Frame(original, resized, ((resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2), size)

    def drawn(self, original: Size, augment: Sequence[str], rescale: bool, generator: torch.Generator) -> Frame:
        """Return a frame with the changes that a generator draws."""
        frame = self.plain(original)
        if "crop" in augment:
            room = (frame.resized[0] - frame.size[0], frame.resized[1] - frame.size[1])
            frame = replace(frame, corner=(_whole(0, room[0], generator), _whole(0, room[1], generator)))
        if "flip" in augment:
            frame = replace(frame, flipped=bool(_whole(0, 1, generator)))
        return self._rescaled(frame, generator) if rescale else frame

    def _rescaled(self, frame: Frame, generator: torch.Generator) -> Frame:
        """Set a square small on empty ground, leave it, or (one time of three) zoom in (Kumari et al. 2023)."""
        side = min(frame.size)
        if float(torch.rand((), generator=generator)) < 2 / 3:
            length = _whole(int(FAR * side), side, generator)
            if length >= SMALL * side:
                return frame
            corner = (_whole(0, frame.size[0] - length, generator), _whole(0, frame.size[1] - length, generator))
            return replace(frame, pasted=(length, *corner), prefix=_prefix("small", generator))
        share = LARGE[0] + (LARGE[1] - LARGE[0]) * float(torch.rand((), generator=generator))
        resized = (round(frame.resized[0] * share), round(frame.resized[1] * share))
        room = (resized[0] - frame.size[0], resized[1] - frame.size[1])
        corner = (_whole(0, room[0], generator), _whole(0, room[1], generator))
        return replace(frame, resized=resized, corner=corner, prefix=_prefix("large", generator))


def _whole(low: int, high: int, generator: torch.Generator) -> int:
    """Return a whole number from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def _prefix(kind: str, generator: torch.Generator) -> str:
    return PREFIXES[kind][_whole(0, len(PREFIXES[kind]) - 1, generator)]
