"""Instruction tuning: answers to prompts or whole conversations, with thoughts in front and refusals mixed in.

mmpeft train llm/sft_messages data.path=my_conversations.jsonl
mmpeft predict runs/sft_messages prompt="What is the capital of France?"
accelerate launch tasks/llm/sft.py configs/llm/sft_messages.yaml
"""

from __future__ import annotations

import sys
from typing import Any

from pydantic import model_validator

from mmpeft.assembly import language, task
from mmpeft.assembly.language import TaskParts
from mmpeft.assembly.language_config import LanguageConfig, Questions
from mmpeft.data.language.encoding import Encoder
from mmpeft.handle.adapters import Adapters
from mmpeft.objectives.generation import Answers, Writer
from mmpeft.objectives.next_token import LanguageModelling


class Config(LanguageConfig):
    """One run of instruction tuning."""

    questions: Questions | None = None
    """Let the model answer the prompts of validation and test: exact match, and rates of refusals where there are some;
    null scores the loss alone."""

    @model_validator(mode="after")
    def _answerable(self) -> Config:
        if self.questions is not None and (self.data.packing == "wrapped" or self.data.name == "text"):
            raise ValueError(
                f"questions: with data.packing: {self.data.packing} and data.name: {self.data.name} there are no "
                "prompts to answer: data.packing=whole, or null"
            )
        if self.questions is None and self.data.refusals is not None:
            raise ValueError("data.refusals: their rates come from what the model writes: set questions: {}")
        return self


def recipe(config: Config) -> TaskParts:
    """Return what is particular to this task."""

    def objective(adapters: Adapters, tokenizer: Any) -> LanguageModelling:
        if config.questions is None:
            return LanguageModelling()
        data, how = config.data, config.questions
        writer = Writer(tokenizer, Encoder(tokenizer, data).ends(), how.max_new_tokens)
        markers = data.refusals.markers if data.refusals is not None else ()
        return LanguageModelling(Answers(writer, how.pattern, data.reasoning.tags[1], markers))

    return TaskParts(objective, questions=config.questions is not None)


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: scores with the adapter, and without (frozen)."""
    return language.run(config, recipe(config))


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    language.check(config, recipe(config))


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    return language.evaluate(config, recipe(config))


def predict(config: Config, index: int) -> str:
    """Return what the adapter of a finished run answers to ``prompt``, or to a test sample."""
    return language.predict(config, recipe(config), index)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
