"""Control images made from pictures: edges, and masks in colours."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

WEAK, STRONG = 100.0, 200.0
"""Thresholds on Sobel gradients of values from 0 to 255, those of most ControlNets of edges."""


def edges(image: Image.Image) -> Image.Image:
    """Return the edges of a picture, white on black, mode ``RGB`` (Canny 1986).

    The picture is smoothed (Gauss, sigma 1); of the Sobel gradients the channel with the largest counts. A place is an
    edge if it is the largest along its gradient, rounded to 45 degrees, above ``WEAK``, and connected to one above
    ``STRONG``.
    """
    values = ndimage.gaussian_filter(np.asarray(image.convert("RGB"), dtype=np.float64), (1, 1, 0))
    gradients = np.stack([ndimage.sobel(values, axis) for axis in (0, 1)])
    lengths = np.hypot(*gradients)
    chosen = lengths.argmax(-1)[None, ..., None]
    down, right = np.take_along_axis(gradients, np.broadcast_to(chosen, (2, *chosen.shape[1:])), -1)[..., 0]
    length = lengths.max(-1)
    thin = length * _is_ridge(length, down, right)
    places, _ = ndimage.label(thin > WEAK, np.ones((3, 3)))
    kept = np.isin(places, np.setdiff1d(places[thin > STRONG], [0]))
    return Image.fromarray((kept * 255).astype(np.uint8)).convert("RGB")


def _is_ridge(length: NDArray[np.float64], down: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Tell where a gradient is not less than both its neighbours in its own direction."""
    sector = np.round(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(length, 1)
    height, width = length.shape
    ridge = np.zeros(length.shape, dtype=bool)
    for index, (y, x) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
        behind = padded[1 - y : 1 - y + height, 1 - x : 1 - x + width]
        ridge |= (sector == index) & (length > ahead) & (length >= behind)
    return ridge


def coloured(mask: Image.Image) -> Image.Image:
    """Return a mask of classes (mode ``L``) in colours as different as can be; class 0 is black."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    for index in range(1, 256):
        palette[index] = [round(255 * part) for part in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.85, 1.0)]
    return Image.fromarray(palette[np.asarray(mask)])
