"""Reward models: an adapter and a new layer that give the better of two answers the larger number.

mmpeft train llm/reward_pairs data.path=my_pairs.jsonl
mmpeft predict runs/reward_pairs prompt="What is the capital of France?" answer="Paris."
accelerate launch tasks/llm/reward.py configs/llm/reward_pairs.yaml
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from mmpeft.assembly.language_config import LanguageConfig, LanguageTraining
from mmpeft.assembly.prediction import Prediction, checked_index
from mmpeft.assembly.task import Task
from mmpeft.training.config import Monitor

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts


class RewardTraining(LanguageTraining):
    """How the adapters are trained."""

    monitor: Monitor | None = Monitor(metric="accuracy")
    """The validation score that selects the best weights; null keeps the last ones, and needs no validation split."""


class Config(LanguageConfig):
    """One run of reward modelling."""

    train: RewardTraining
    """How the adapters and the new layer are trained."""
    centering: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared sum of both rewards, which draws them towards 0; 0.01 is usual."""
    answer: str | None = None
    """What ``mmpeft predict`` scores as an answer to ``prompt``; without both it scores a test pair."""

    @model_validator(mode="after")
    def _complete(self) -> Config:
        if (self.prompt is None) != (self.answer is None):
            raise ValueError(f"prompt: {self.prompt!r} and answer: {self.answer!r}: give both, or none")
        return self


def assemble(config: Config) -> Parts:
    """Load the model with a layer that gives a number, and its tokenizer."""
    from mmpeft.assembly import language
    from mmpeft.heads.reward import ScalarScorer
    from mmpeft.objectives.reward import RewardModelling

    parts = language.assemble(
        config, lambda adapters, tokenizer: RewardModelling(config.centering), shape="pairs", head=ScalarScorer
    )
    return replace(parts, head=True, frozen=False, answer=lambda index: answer(config, parts, index))


def answer(config: Config, parts: Parts, index: int) -> Prediction:
    """Return the reward of ``answer`` to ``prompt``, or those of both answers of a test pair."""
    import torch

    from mmpeft.data.language.batches import pad_sequences
    from mmpeft.data.language.encoding import Encoder
    from mmpeft.data.language.formats import ask

    if config.prompt is not None and config.answer is not None:
        example = ask(config.prompt, config.data, config.answer)
        rows, names = [Encoder(parts.tokenizer, config.data).encode(example)], ["reward"]
    else:
        test: Any = parts.data.test
        rows, names = test.sequences(checked_index(test, index)), ["chosen", "rejected"]
    batch = pad_sequences(rows, 0)
    with torch.no_grad():
        scores = parts.model(batch["input_ids"], batch["attention_mask"]).tolist()
    return Prediction(", ".join(f"{name} {score:.4f}" for name, score in zip(names, scores, strict=True)))


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
