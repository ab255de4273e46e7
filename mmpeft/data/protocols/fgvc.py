"""FGVC: five fine-grained data sets, with the splits of VPT (Jia et al. 2022, arXiv:2203.12119)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FgvcTask:
    """One data set: its number of classes, where in its folder the images lie, and other names of the folder."""

    classes: int
    images: str
    spellings: tuple[str, ...] = ()


FGVC: dict[str, FgvcTask] = {
    "cub": FgvcTask(200, "images", ("CUB_200_2011",)),
    "nabirds": FgvcTask(555, "images"),
    "flowers": FgvcTask(102, ".", ("oxford_flowers", "OxfordFlower")),
    "dogs": FgvcTask(120, "Images", ("stanford_dogs", "Stanford-dogs")),
    "cars": FgvcTask(196, ".", ("stanford_cars", "Stanford-cars")),
}
"""The data sets; each folder also has ``train.json``, ``val.json`` and ``test.json``: ``{file: class}``."""
