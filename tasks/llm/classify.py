"""Texts, or pairs of texts, with a class or a number: the head that transformers has for the model, and adapters.

mmpeft train llm/classify_moods
mmpeft predict runs/classify_moods text="Anna met Ben in the park. Anna was proud."
accelerate launch tasks/llm/classify.py configs/llm/classify_moods.yaml
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from pydantic import model_validator

import mmpeft
from mmpeft.assembly import classic_text as text_task
from mmpeft.assembly import task
from mmpeft.assembly.classic_text import TextRecipe
from mmpeft.assembly.language import DTYPES
from mmpeft.assembly.language_config import TextConfig
from mmpeft.data.language.labelled import encode_texts, load_labelled
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.data.language.task_splits import TaskSplits
from mmpeft.objectives.text_labels import TextClassification, TextRegression, head_outputs


class Config(TextConfig):
    """One run of text classification or regression."""

    data: LabelledTexts
    """Where texts and labels come from."""
    text: str | None = None
    """What ``mmpeft predict`` labels; null takes a test sample."""
    text_pair: str | None = None
    """The second text to it."""

    @model_validator(mode="after")
    def _complete(self) -> Config:
        if self.text is None and self.text_pair is not None:
            raise ValueError(f"text_pair: {self.text_pair!r}: give its text too")
        return self


def make_model(config: Config, data: TaskSplits) -> Any:
    """Load the model with a new head: one output for each class, or a single one for numbers."""
    model: Any = mmpeft.load_model(
        config.model.name, num_classes=len(data.classes) or 1, dtype=DTYPES[config.precision]
    )
    return model


RECIPE = TextRecipe[Config](
    data=lambda config, tokenizer: load_labelled(config.data, tokenizer),
    model=make_model,
    objective=lambda config, data, model, tokenizer: (
        TextClassification(len(data.classes)) if data.classes else TextRegression()
    ),
    loading=lambda config, data: (
        f'model = mmpeft.load_model("{config.model.name}", num_classes={len(data.classes) or 1})'
    ),
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
    """Return what the adapter of a finished run says of ``text``, or of a test sample and what is right."""
    parts = text_task.load_adapted(config, RECIPE)
    classes, split = parts.data.classes, parts.data.test
    if config.text is None:
        item = text_task.test_item(parts.data, index)
        shown = split.describe(index)
    else:
        item = encode_texts(parts.tokenizer, config.text, config.text_pair, config.data.max_length)
        shown = config.text if config.text_pair is None else f"{config.text} | {config.text_pair}"
    with torch.no_grad():
        outputs = head_outputs(parts.model, split.collate([item]))[0]
    if not classes:
        return f"{shown} -> {outputs[0]:.4f}"
    shares = dict(zip(classes, outputs.softmax(-1).tolist(), strict=True))
    likely = sorted(shares, key=lambda name: -shares[name])[:3]
    return f"{shown} -> {', '.join(f'{name} ({shares[name]:.1%})' for name in likely)}"


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
