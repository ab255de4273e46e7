"""What the classic tasks of language models do: data first, then the model that it needs; train, evaluate, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn

from mmpeft.anatomies.headed import backbone_of
from mmpeft.assembly.language_config import TextConfig
from mmpeft.assembly.task import add_adapters, checkpoint_blocks, load_adapters
from mmpeft.data.language.task_splits import TaskSplits
from mmpeft.objectives.base import Objective
from mmpeft.training.check import check_run
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.run.report import train_and_report
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.training.trainer import Trainer
from mmpeft.zoo.language_models import load_text_tokenizer

Config = TypeVar("Config", bound=TextConfig)


@dataclass(frozen=True)
class TextRecipe(Generic[Config]):
    """What the tasks differ in."""

    data: Callable[[Config, Any], TaskSplits]
    """From the configuration and the tokenizer to the data."""
    model: Callable[[Config, TaskSplits], Any]
    """From the configuration and the data to the model."""
    objective: Callable[[Config, TaskSplits, Any, Any], Objective]
    """From the configuration, the data, the model and the tokenizer to the objective."""
    loading: Callable[[Config, TaskSplits], str]
    """Python that makes the model, for the model card."""
    trains_head: bool = True
    """Whether the head is new, and so trained too."""


@dataclass(frozen=True)
class Parts(Generic[Config]):
    """What a run is put together from."""

    config: Config
    tokenizer: Any
    data: TaskSplits
    model: Any
    objective: Objective


def assemble(config: Config, recipe: TextRecipe[Config]) -> Parts[Config]:
    """Load tokenizer, data and model; what was left out of the data is printed, classes that it names are kept."""
    set_seed(config.train.seed)
    tokenizer = load_text_tokenizer(config.model.name)
    data = recipe.data(config, tokenizer)
    for note in data.notes:
        PartialState().print(note)
    if data.classes:
        named = config.data.model_copy(update={"classes": data.classes})
        config = config.model_copy(update={"data": named})
    model = recipe.model(config, data)
    pad_with(model, data.train.fills["input_ids"])
    return Parts(config, tokenizer, data, model, recipe.objective(config, data, model, tokenizer))


def pad_with(model: nn.Module, fill: float) -> None:
    """Tell a model which token fills rows: heads of decoders read the last one in front of it."""
    inner: Any = backbone_of(model)
    inner.config.get_text_config().pad_token_id = int(fill)


def run(config: Config, recipe: TextRecipe[Config], *, frozen: bool = False) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics; with ``frozen`` the bare model is tested too."""
    RunDirectory(config.output).claim(config.train.resume)
    trainer, parts = build(config, recipe)
    loading = recipe.loading(parts.config, parts.data)
    return train_and_report(trainer, parts.config, loading, frozen=frozen, notes=parts.data.notes)


def check(config: Config, recipe: TextRecipe[Config]) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    trainer, parts = build(config, recipe)
    print(trainer.adapters.report())
    check_run(trainer, parts.data.train.describe)


def build(config: Config, recipe: TextRecipe[Config]) -> tuple[Trainer, Parts[Config]]:
    """Put together a trainer, with the model's adapters."""
    parts = assemble(config, recipe)
    adapters = add_adapters(parts.model, config, head=recipe.trains_head)
    if config.train.gradient_checkpointing:
        checkpoint_blocks(backbone_of(parts.model))
    return Trainer(parts.model, adapters, parts.objective, parts.data, config.train, config.output), parts


def evaluate(config: Config, recipe: TextRecipe[Config]) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    parts = load_adapted(config, recipe)
    return evaluate_split(parts.model, parts.objective, parts.data, config.train, config.output)


def load_adapted(config: Config, recipe: TextRecipe[Config]) -> Parts[Config]:
    """Load the data, and a fresh model with the adapters that the run directory holds, in evaluation mode."""
    parts = assemble(config, recipe)
    load_adapters(parts.model, config)
    parts.model.eval()
    return parts


def test_item(data: TaskSplits, index: int) -> dict[str, Any]:
    """Return a sample of the test split, or raise a ValueError if there is no such one."""
    if not 0 <= index < len(data.test):
        raise ValueError(f"index: {index} is not among the {len(data.test)} test samples")
    return data.test[index]
