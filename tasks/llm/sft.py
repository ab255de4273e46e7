"""Instruction tuning: answers to prompts or whole conversations, with thoughts in front and refusals mixed in.

mmpeft train llm/sft_messages data.path=my_conversations.jsonl
mmpeft predict runs/sft_messages prompt="What is the capital of France?"
accelerate launch tasks/llm/sft.py configs/llm/sft_messages.yaml
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from mmpeft.assembly.language_config import LanguageConfig, Questions
from mmpeft.assembly.task import Task

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts
    from mmpeft.handle.adapters import Adapters
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


def assemble(config: Config) -> Parts:
    """Load the model and its tokenizer; answers are learned, and on a wish the model's own ones scored."""
    from mmpeft.assembly import language

    def objective(adapters: Adapters, tokenizer: Any) -> LanguageModelling:
        return make_objective(config, tokenizer)

    return language.assemble(config, objective, questions=config.questions is not None)


def make_objective(config: Config, tokenizer: Any) -> LanguageModelling:
    """Return the cross entropy of answers, and with ``questions`` the scores of what the model writes itself."""
    from mmpeft.data.language.encoding import Encoder
    from mmpeft.objectives.generation import Answers, Writer
    from mmpeft.objectives.next_token import LanguageModelling

    if config.questions is None:
        return LanguageModelling()
    data, how = config.data, config.questions
    writer = Writer(tokenizer, Encoder(tokenizer, data).ends(), how.max_new_tokens)
    markers = data.refusals.markers if data.refusals is not None else ()
    return LanguageModelling(Answers(writer, how.pattern, data.reasoning.tags[1], markers))


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
