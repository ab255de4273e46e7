"""What the classic tasks of language models share: data first, then the model that it needs."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from mmpeft.anatomies.headed import backbone_of
from mmpeft.assembly.grafting import checkpoint_blocks
from mmpeft.assembly.language_config import TextConfig
from mmpeft.data.language.task_splits import TaskSplits

Config = TypeVar("Config", bound=TextConfig)


def with_classes(config: Config, data: TaskSplits) -> Config:
    """Return the configuration with the classes that the data has, so that a saved run keeps them and their order."""
    if not data.classes:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"classes": data.classes})})


def pad_with(model: nn.Module, data: TaskSplits) -> None:
    """Tell a model which token fills the data's rows: heads of decoders read the last one in front of it."""
    backbone: Any = backbone_of(model)
    backbone.config.get_text_config().pad_token_id = int(data.train.fills["input_ids"])


def recompute_blocks(model: nn.Module, config: TextConfig) -> None:
    """Have the blocks of an adapted model computed again in the backward pass, if the configuration says so."""
    if config.train.gradient_checkpointing:
        checkpoint_blocks(backbone_of(model))
