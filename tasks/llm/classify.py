"""Texts, or pairs of texts, with a class or a number: the head that transformers has for the model, and adapters.

mmpeft train llm/classify_moods
mmpeft predict runs/classify_moods text="Anna met Ben in the park. Anna was proud."
accelerate launch tasks/llm/classify.py configs/llm/classify_moods.yaml
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from pydantic import model_validator

import mmpeft
from mmpeft.assembly.language_config import TextConfig
from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.assembly.task import Task
from mmpeft.data.language.task_config import LabelledTexts

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts
    from mmpeft.data.language.task_splits import TaskSplits


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


def assemble(config: Config) -> Parts:
    """Load the data, and the model with a new head: one output for each class, or a single one for numbers."""
    from mmpeft.assembly.classic_text import pad_with, recompute_blocks, with_classes
    from mmpeft.assembly.images import refuse_one_class
    from mmpeft.assembly.parts import Parts
    from mmpeft.data.language.labelled import load_labelled
    from mmpeft.objectives.text_labels import TextClassification, TextRegression
    from mmpeft.zoo.language_models import check_vocabulary, load_text_tokenizer
    from mmpeft.zoo.precision import DTYPES

    name = config.model.name
    tokenizer = load_text_tokenizer(name)
    data = load_labelled(config.data, tokenizer)
    if data.classes:
        refuse_one_class(data.classes, config.data.title)
    outputs = len(data.classes) or 1
    model = mmpeft.load_model(name, num_classes=outputs, dtype=DTYPES[config.precision])
    check_vocabulary(model, tokenizer, name)
    pad_with(model, data)
    parts = Parts(
        with_classes(config, data),
        model,
        read=lambda: data,
        objective=lambda adapters: TextClassification(outputs) if data.classes else TextRegression(),
        answer=lambda index: answer(config, parts, data, index),
        loading=f'model = mmpeft.load_model("{name}", num_classes={outputs})',
        tokenizer=tokenizer,
        head=True,
        once_adapted=partial(recompute_blocks, model, config),
    )
    return parts


def answer(config: Config, parts: Parts, data: TaskSplits, index: int) -> Prediction:
    """Say what the model makes of ``text``, or of a test sample and what is right."""
    import torch

    from mmpeft.data.language.labelled import encode_texts
    from mmpeft.objectives.text_labels import head_outputs

    if config.text is None:
        item = data.test[checked_index(data.test, index)]
        shown = data.test.describe(index)
    else:
        item = encode_texts(parts.tokenizer, config.text, config.text_pair, config.data.max_length)
        shown = config.text if config.text_pair is None else f"{config.text} | {config.text_pair}"
    with torch.no_grad():
        outputs = head_outputs(parts.model, data.test.collate([item]))[0]
    if not data.classes:
        return Prediction(f"{shown} -> {outputs[0]:.4f}")
    shares = dict(zip(data.classes, outputs.softmax(-1).tolist(), strict=True))
    return Prediction(f"{shown} -> {Prediction(shares=shares).likeliest()}", shares=shares)


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
