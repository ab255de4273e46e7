"""What every task of language models does: put the parts together, train, evaluate, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from torch import nn

import mmpeft
from mmpeft.anatomies.headed import Headed, backbone_of
from mmpeft.assembly.language_config import LanguageConfig
from mmpeft.assembly.task import add_adapters, checkpoint_blocks, load_adapters
from mmpeft.data.language.encoding import Encoder
from mmpeft.data.language.formats import ask
from mmpeft.data.language.splits import TextSplits
from mmpeft.data.language.text_sets import Shape, load_texts
from mmpeft.handle.adapters import Adapters
from mmpeft.heads.token_probabilities import TokenScorer
from mmpeft.injection.pipelines import Vocabulary
from mmpeft.objectives.base import Objective
from mmpeft.objectives.generation import Writer
from mmpeft.training.accelerator import make_accelerator
from mmpeft.training.check import check_run
from mmpeft.training.evaluation import evaluate_split
from mmpeft.training.run.report import train_and_report
from mmpeft.training.run.run_directory import RunDirectory
from mmpeft.training.trainer import Trainer
from mmpeft.zoo.language_models import load_language_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MakeObjective = Callable[[Adapters, Any], Objective]
"""From the adapters and the tokenizer to the objective of a task."""


@dataclass(frozen=True)
class TaskParts:
    """What tasks differ in."""

    objective: MakeObjective
    head: Callable[[Any], Headed] = TokenScorer
    """Puts a head of ours around the library's model."""
    shape: Shape = "sequences"
    """What a sample is."""
    questions: bool = False
    """Whether the model is also to answer the questions of validation and test."""
    trains_head: bool | tuple[str, ...] = False
    """Whether the head is new, and so trained too, or the adapters that train it."""
    data: Callable[[Any, Any], Any] | None = None
    """Makes the splits of configuration and tokenizer, where they are not texts of a ``shape``."""
    trainer: type[Trainer] = Trainer
    """What trains."""
    speaker: str | None = None
    """The adapter that writes, where others beside it don't."""
    loading: str = "model = {}"
    """Python that makes the model, for the model card."""


def run(
    config: LanguageConfig,
    recipe: TaskParts,
    *,
    frozen: bool = True,
    prepare: Callable[[Trainer], None] | None = None,
) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics.

    ``prepare`` is called with the trainer before; with ``frozen`` the model without its adapters is tested too.
    """
    RunDirectory(config.output).claim(config.train.resume)
    trainer = build(config, recipe)
    if prepare is not None:
        prepare(trainer)
    loading = recipe.loading.format(f'mmpeft.load_model("{config.model.name}")')
    return train_and_report(trainer, config, loading, frozen=frozen, notes=trainer.data.notes)  # type: ignore[attr-defined]


def check(config: LanguageConfig, recipe: TaskParts) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    trainer = build(config, recipe)
    print(trainer.adapters.report())
    check_run(trainer, trainer.data.train.describe)  # type: ignore[attr-defined]


def evaluate(config: LanguageConfig, recipe: TaskParts) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    model, tokenizer = load_adapted(config, recipe)
    data = load_data(config, recipe, tokenizer)
    objective = recipe.objective(mmpeft.adapters(model), tokenizer)
    return evaluate_split(model, objective, data, config.train, config.output)


def build(config: LanguageConfig, recipe: TaskParts) -> Trainer:
    """Put together a trainer: the model with its adapters, the data and the objective."""
    model, tokenizer = load(config, recipe)
    data = load_data(config, recipe, tokenizer)
    adapters = add_adapters(model, config, head=recipe.trains_head)
    if config.data.packing != "none":
        check_packing(model)
    if config.train.gradient_checkpointing:
        checkpoint_blocks(model.backbone)
    return recipe.trainer(model, adapters, recipe.objective(adapters, tokenizer), data, config.train, config.output)


def load(config: LanguageConfig, recipe: TaskParts) -> tuple[Headed, Any]:
    """Load the model, with the task's head around it, and its tokenizer."""
    set_seed(config.train.seed)
    backbone, tokenizer = load_language_model(config.model.name, DTYPES[config.precision])
    model = recipe.head(backbone)
    model.words = Vocabulary(tokenizer).words
    return model, tokenizer


def load_adapted(config: LanguageConfig, recipe: TaskParts) -> tuple[Headed, Any]:
    """Load a fresh model with the adapters that the run directory holds, and its tokenizer."""
    model, tokenizer = load(config, recipe)
    load_adapters(model, config)
    return model, tokenizer


def load_data(config: LanguageConfig, recipe: TaskParts, tokenizer: Any) -> TextSplits:
    """Load the data; what was left out or mixed in is printed."""
    if recipe.data is not None:
        data = recipe.data(config.data, tokenizer)
    else:
        data = load_texts(config.data, tokenizer, recipe.shape, questions=recipe.questions)
    for note in data.notes:
        PartialState().print(note)
    return data


def predict(config: LanguageConfig, recipe: TaskParts, index: int) -> str:
    """Return what the adapter of a finished run writes after ``prompt``, or after the prompt of a test sample.

    Raises:
        ValueError: If there is no such test sample, or it is a document.
    """
    if config.prompt is None and config.data.name == "text":
        raise ValueError("prompt: give one; the test split has documents, not questions")
    model, tokenizer = load_adapted(config, recipe)
    if recipe.speaker is not None:
        mmpeft.adapters(model).activate(recipe.speaker)
    encoder = Encoder(tokenizer, config.data)
    if config.prompt is not None:
        prompt = encoder.encode_prompt(ask(config.prompt, config.data))
    else:
        data = load_data(config, replace(recipe, questions=True), tokenizer)
        assert data.test.question is not None
        prompt = data.test.question(checked_index(data, index))[0]
    model.to(make_accelerator(config.train, config.output).device).eval()
    ids = torch.from_numpy(prompt).long()[None].to(next(model.parameters()).device)
    how = config.writing
    sampled = {"do_sample": True, "temperature": how.temperature, "top_p": how.top_p} if how.temperature else {}
    set_seed(config.train.seed)
    return Writer(tokenizer, encoder.ends(), how.max_new_tokens)(model, ids, torch.ones_like(ids), **sampled)[0]


def checked_index(data: TextSplits, index: int) -> int:
    """Return the index of a test sample, or raise a ValueError if there is no such one."""
    if not 0 <= index < len(data.test):
        raise ValueError(f"index: {index} is not among the {len(data.test)} test samples")
    return index


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Raise a ValueError unless a document packed behind another one is scored as it is alone."""
    training, device = model.training, next(model.parameters()).device
    ids = torch.arange(3, 9, device=device)[None]
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
    model.eval()
    packed, _ = model(ids, torch.tensor([[0, 0, 0, 0, 1, 1]], device=device), position_ids=positions)
    alone, _ = model(ids[:, 3:], torch.tensor([[0, 1, 1]], device=device))
    model.train(training)
    if not torch.allclose(packed, alone, 1e-2, 1e-2):
        name = type(backbone_of(model)).__name__
        raise ValueError(
            f"data.packing: with these adapters {name} does not score a document behind another one as it does alone "
            "(it makes no mask from positions, or inserted tokens stand in front of the first one only): none"
        )
