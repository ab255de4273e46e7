"""scikit-learn's real handwritten digits: 1,797 grey pictures of 8 x 8 pixels, on disk with scikit-learn itself."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from mmpeft.data.config import DataConfig
from mmpeft.data.samples import Sample


def read_digits(config: DataConfig) -> list[Sample]:
    """Return the digits, light ink on black, 17 grey levels (UCI Optical Recognition of Handwritten Digits, 1998)."""
    table = np.loadtxt(_file(), delimiter=",", dtype=np.uint8)
    pictures = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return [
        Sample(id=f"digits/{number:04d}", label=int(label), open=partial(Image.fromarray, picture))
        for number, (picture, label) in enumerate(zip(pictures, table[:, -1], strict=True))
    ]


def _file() -> Path:
    """Return the file that ``sklearn.datasets.load_digits`` reads: importing it takes a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ImportError(
            "data.name: digits are a file of scikit-learn, which is not installed: pip install scikit-learn"
        )
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
