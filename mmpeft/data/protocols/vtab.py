"""VTAB-1k (Zhai et al. 2019, arXiv:1910.04867): 19 tasks of 1,000 training images each, in three groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

Group = Literal["natural", "specialized", "structured"]


@dataclass(frozen=True)
class VtabTask:
    """One task: its group, its number of classes, and other names that its folder has in some repositories."""

    group: Group
    classes: int
    spellings: tuple[str, ...] = ()


VTAB: dict[str, VtabTask] = {
    "caltech101": VtabTask("natural", 102),
    "cifar": VtabTask("natural", 100, ("cifar100",)),
    "dtd": VtabTask("natural", 47),
    "oxford_flowers102": VtabTask("natural", 102, ("oxford_flowers",)),
    "oxford_iiit_pet": VtabTask("natural", 37, ("oxford_pet",)),
    "sun397": VtabTask("natural", 397),
    "svhn": VtabTask("natural", 10),
    "patch_camelyon": VtabTask("specialized", 2),
    "eurosat": VtabTask("specialized", 10),
    "resisc45": VtabTask("specialized", 45),
    "diabetic_retinopathy": VtabTask("specialized", 5),
    "clevr_count": VtabTask("structured", 8),
    "clevr_dist": VtabTask("structured", 6),
    "dmlab": VtabTask("structured", 6),
    "kitti": VtabTask("structured", 4),
    "dsprites_loc": VtabTask("structured", 16),
    "dsprites_ori": VtabTask("structured", 16),
    "smallnorb_azi": VtabTask("structured", 18),
    "smallnorb_ele": VtabTask("structured", 9),
}
"""The tasks by the names of their folders in NOAH's text form."""


@dataclass(frozen=True)
class VtabMeans:
    """Both averages that papers call "VTAB"; say which one you print."""

    tasks: float
    """Mean of the 19 tasks."""
    groups: float
    """Mean of the three groups' means, which most papers report."""
    natural: float
    specialized: float
    structured: float


def vtab_means(scores: Mapping[str, float]) -> VtabMeans:
    """Return the averages of the 19 tasks' scores.

    Raises:
        ValueError: If a task is missing or unknown; all of them are named.
    """
    if scores.keys() != VTAB.keys():
        missing, unknown = sorted(VTAB.keys() - scores), sorted(scores.keys() - VTAB)
        raise ValueError(f"vtab_means: missing: {', '.join(missing) or '-'}; unknown: {', '.join(unknown) or '-'}")

    def mean(group: Group) -> float:
        return fmean(score for task, score in scores.items() if VTAB[task].group == group)

    natural, specialized, structured = mean("natural"), mean("specialized"), mean("structured")
    groups = fmean((natural, specialized, structured))
    return VtabMeans(fmean(scores.values()), groups, natural, specialized, structured)
