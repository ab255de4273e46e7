"""The configuration that all tasks of language models share. Needs no torch."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.source_config import TextSource
from mmpeft.settings import Settings
from mmpeft.training.config import CacheConfig, Monitor, RunConfig, TrainConfig, as_store


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern


class LanguageTraining(TrainConfig):
    """How the adapters are trained."""

    batch_size: PositiveInt = 8
    """Samples per process and forward pass."""
    lr: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate."""
    monitor: Monitor | None = Monitor(metric="loss", mode="min")
    """The validation score that selects the best weights; null keeps the last ones, and needs no validation split."""
    cache: Annotated[CacheConfig, BeforeValidator(as_store)] = CacheConfig(store="off")
    """The cache of a frozen prefix, which is for images."""
    gradient_checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping what they made: less memory, half more time."""


class Writing(Settings):
    """How a model writes."""

    max_new_tokens: PositiveInt = 64
    """Tokens of an answer at most."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token each time; otherwise logits are divided by this, and a token is drawn."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens with this share of the probability."""


class Questions(Settings):
    """Evaluation by what the model writes, besides the loss."""

    max_new_tokens: PositiveInt = 64
    """Tokens of an answer at most."""
    pattern: Annotated[str, AfterValidator(_compiled)] | None = None
    """A regular expression that finds the final answer in a text, such as ``#### (.*)``; null compares all of it."""


class TextConfig(RunConfig):
    """One run of a task with texts."""

    data: TextSource  # type: ignore[assignment]
    """Where texts come from, and how they become tokens."""
    train: LanguageTraining
    """How the adapters are trained."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the frozen weights; adapters have fp32."""

    @model_validator(mode="after")
    def _text_only(self) -> TextConfig:
        if self.model.image_size is not None:
            raise ValueError(f"model.image_size: {self.model.image_size}: a language model has no images")
        if self.train.cache.store != "off":
            raise ValueError(f"train.cache: {self.train.cache.store!r}: prefixes are kept of images only: off")
        return self


class LanguageConfig(TextConfig):
    """One run of a task of language models that write."""

    data: LanguageData
    """Where texts come from, and how they become tokens."""
    writing: Writing = Writing()
    """How ``mmpeft predict`` writes."""
    prompt: str | None = None
    """What ``mmpeft predict`` answers; null takes the prompt of a test sample."""
