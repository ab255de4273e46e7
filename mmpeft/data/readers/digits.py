"""scikit-learn's real handwritten digits: 1,797 grey pictures of 8 x 8 pixels, on disk with scikit-learn itself."""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.samples import Sample


def read_digits(config: DataConfig) -> list[Sample]:
    """Return the digits, light ink on black, 17 grey levels (UCI Optical Recognition of Handwritten Digits, 1998)."""
    from sklearn.datasets import load_digits  # a second of imports that other data do without

    digits = load_digits()
    pictures = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return [
        Sample(id=f"digits/{number:04d}", label=int(label), open=partial(Image.fromarray, picture))
        for number, (picture, label) in enumerate(zip(pictures, digits.target, strict=True))
    ]
