"""The choices of a segmentation head. Needs no torch."""

from __future__ import annotations

from typing import Literal

DecoderName = Literal["linear", "conv"]
"""A 1 x 1 convolution, or a few layers at twice the resolution of the features."""
