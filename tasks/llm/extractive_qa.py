"""Extractive question answering: the head that transformers has for the model points at an answer in a context.

mmpeft train llm/qa_stories
mmpeft predict runs/qa_stories context="Anna found the red hat in the barn." question="What did Anna find?"
accelerate launch tasks/llm/extractive_qa.py configs/llm/qa_stories.yaml
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from pydantic import PositiveInt, model_validator

import mmpeft
from mmpeft.assembly.language_config import TextConfig
from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.assembly.task import Task
from mmpeft.data.language.task_config import ReadingData

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts
    from mmpeft.data.language.task_splits import TaskSplits
    from mmpeft.objectives.reading import Reading


class Config(TextConfig):
    """One run of extractive question answering."""

    data: ReadingData
    """Where questions come from, and how long contexts are cut into windows."""
    max_answer_length: PositiveInt = 30
    """Tokens of an answer at most."""
    threshold: float = 0.0
    """By how much no answer must score above the best one to be what is said, where ``data.unanswerable``."""
    context: str | None = None
    """What ``mmpeft predict`` reads; null takes a test question."""
    question: str | None = None
    """What it is asked of it."""

    @model_validator(mode="after")
    def _complete(self) -> Config:
        if (self.context is None) != (self.question is None):
            raise ValueError(f"context: {self.context!r} and question: {self.question!r}: give both, or none")
        return self


def assemble(config: Config) -> Parts:
    """Load the data, and the model with a new head for the two ends of an answer."""
    from mmpeft.assembly.classic_text import pad_with, recompute_blocks
    from mmpeft.assembly.parts import Parts
    from mmpeft.data.language.reading import load_reading
    from mmpeft.zoo.language_models import check_vocabulary, load_text_tokenizer
    from mmpeft.zoo.precision import DTYPES

    name = config.model.name
    tokenizer = load_text_tokenizer(name)
    data = load_reading(config.data, tokenizer)
    model = mmpeft.load_model(name, task="question_answering", dtype=DTYPES[config.precision])
    check_vocabulary(model, tokenizer, name)
    pad_with(model, data)
    parts = Parts(
        config,
        model,
        read=lambda: data,
        objective=lambda adapters: make_objective(config),
        answer=lambda index: answer(config, parts, data, index),
        loading=f'model = mmpeft.load_model("{name}", task="question_answering")',
        tokenizer=tokenizer,
        head=True,
        once_adapted=partial(recompute_blocks, model, config),
    )
    return parts


def make_objective(config: Config) -> Reading:
    """Return the loss of the two ends, and what is said at evaluation."""
    from mmpeft.objectives.reading import Reading

    return Reading(
        max_answer_length=config.max_answer_length,
        unanswerable=config.data.unanswerable,
        threshold=config.threshold,
    )


def answer(config: Config, parts: Parts, data: TaskSplits, index: int) -> Prediction:
    """Return the answer to ``question``, or to that of a test sample."""
    import torch

    from mmpeft.data.language.reading import windows
    from mmpeft.objectives.reading import span_logits

    context, question, truths = config.context, config.question, ""
    if context is None or question is None:
        item = data.test[checked_index(data.test, index)]
        context, question = item["context"], item["question"]
        truths = f" (right: {', '.join(item['truths']) or 'no answer'})"
    items = windows(parts.tokenizer, question, context, (), config.data)
    batch = data.test.collate([item | {"asked": "", "truths": []} for item in items])
    with torch.no_grad():
        start, end = span_logits(parts.model, batch)
    objective = make_objective(config)
    said = objective.answer(objective.find(start, end, batch, [0.0] * len(items)))
    return Prediction(f"{context}\n{question} {said or 'no answer'}{truths}")


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
