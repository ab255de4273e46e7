"""What ``mmpeft predict`` shows. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmpeft.data.samples import Sample


@dataclass(frozen=True)
class Prediction:
    """What adapters say of one sample: in words, as the probability of each answer, or as a picture that they drew."""

    text: str | None = None
    """What was written, or said of a text."""
    sample: Sample | None = None
    """The labelled image that the probabilities are about."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """How likely each answer is; or, of a segmentation, the share of pixels that each class gets."""
    picture: Path | None = None
    """The file of what was drawn."""

    def likeliest(self, count: int = 3) -> str:
        """Return the first answers in words, the likeliest first: ``cat (71.2%), dog (20.1%)``."""
        ordered = sorted(self.shares, key=lambda name: -self.shares[name])[:count]
        return ", ".join(f"{name} ({self.shares[name]:.1%})" for name in ordered)


def checked_index(split: Sized, index: int) -> int:
    """Return the index of a test sample, or raise a ValueError if there is no such one."""
    if not 0 <= index < len(split):
        raise ValueError(f"index: {index} is not among the {len(split)} test samples")
    return index
