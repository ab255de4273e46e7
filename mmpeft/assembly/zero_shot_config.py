"""The configuration that tasks on zero-shot classifiers share. Needs no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from mmpeft.training.config import RunConfig


class ZeroShotConfig(RunConfig):
    """One run on a zero-shot classifier, or its repetition over seeds."""

    templates: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Texts with a place ``{}`` for the name of a class; several are averaged. Null takes those of the data's protocol,
    or "a photo of a {}."."""
    class_names: Annotated[dict[str, str], Field(default_factory=dict)]
    """Words for classes whose names in the data say little; of all others "_" becomes a space."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""
    cache_views: PositiveInt = 1
    """Augmented views of each training image that a Tip-Adapter's cache takes the mean of."""
    seeds: tuple[NonNegativeInt, ...] = ()
    """Seeds to repeat the run for, each with other training images; () is one run."""
