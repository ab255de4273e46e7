"""Extractive question answering: the head that transformers has for the model points at an answer in a context.

mmpeft train llm/qa_stories
mmpeft predict runs/qa_stories context="Anna found the red hat in the barn." question="What did Anna find?"
accelerate launch tasks/llm/extractive_qa.py configs/llm/qa_stories.yaml
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from pydantic import PositiveInt, model_validator

import mmpeft
from mmpeft.assembly import classic_text as text_task
from mmpeft.assembly import task
from mmpeft.assembly.classic_text import TextRecipe
from mmpeft.assembly.language import DTYPES
from mmpeft.assembly.language_config import TextConfig
from mmpeft.data.language.reading import load_reading, windows
from mmpeft.data.language.task_config import ReadingData
from mmpeft.objectives.reading import Reading, span_logits


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


def make_objective(config: Config) -> Reading:
    """Return the loss of the two ends, and what is said at evaluation."""
    return Reading(
        max_answer_length=config.max_answer_length,
        unanswerable=config.data.unanswerable,
        threshold=config.threshold,
    )


RECIPE = TextRecipe[Config](
    data=lambda config, tokenizer: load_reading(config.data, tokenizer),
    model=lambda config, data: mmpeft.load_model(
        config.model.name, task="question_answering", dtype=DTYPES[config.precision]
    ),
    objective=lambda config, data, model, tokenizer: make_objective(config),
    loading=lambda config, data: f'model = mmpeft.load_model("{config.model.name}", task="question_answering")',
)


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: scores are of the best adapter."""
    return text_task.run(config, RECIPE)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    text_task.check(config, RECIPE)


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    return text_task.evaluate(config, RECIPE)


def predict(config: Config, index: int) -> str:
    """Return the answer of the adapter of a finished run to ``question``, or to that of a test sample."""
    parts = text_task.load_adapted(config, RECIPE)
    split, truths = parts.data.test, ""
    context, question = config.context, config.question
    if context is None or question is None:
        item = text_task.test_item(parts.data, index)
        context, question = item["context"], item["question"]
        truths = f" (right: {', '.join(item['truths']) or 'no answer'})"
    items = windows(parts.tokenizer, question, context, (), config.data)
    batch = split.collate([item | {"asked": "", "truths": []} for item in items])
    with torch.no_grad():
        start, end = span_logits(parts.model, batch)
    objective = make_objective(config)
    said = objective.answer(objective.find(start, end, batch, [0.0] * len(items)))
    return f"{context}\n{question} {said or 'no answer'}{truths}"


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
