"""Reward models: an adapter and a new layer that give the better of two answers the larger number.

mmpeft train llm/reward_pairs data.path=my_pairs.jsonl
mmpeft predict runs/reward_pairs prompt="What is the capital of France?" answer="Paris."
accelerate launch tasks/llm/reward.py configs/llm/reward_pairs.yaml
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from mmpeft.assembly import language, task
from mmpeft.assembly.language import TaskParts
from mmpeft.assembly.language_config import LanguageConfig, LanguageTraining
from mmpeft.data.language.batches import pad_sequences
from mmpeft.data.language.encoding import Encoder
from mmpeft.data.language.formats import ask
from mmpeft.heads.reward import ScalarScorer
from mmpeft.objectives.reward import RewardModelling
from mmpeft.training.config import Monitor


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


def recipe(config: Config) -> TaskParts:
    """Return what is particular to this task."""
    return TaskParts(
        lambda adapters, tokenizer: RewardModelling(config.centering),
        ScalarScorer,
        "pairs",
        trains_head=True,
        loading="from mmpeft.heads.reward import ScalarScorer\n\nmodel = ScalarScorer({})",
    )


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics."""
    return language.run(config, recipe(config), frozen=False)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    language.check(config, recipe(config))


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    return language.evaluate(config, recipe(config))


def predict(config: Config, index: int) -> str:
    """Return the reward of ``answer`` to ``prompt``, or those of both answers of a test pair."""
    model, tokenizer = language.load_adapted(config, recipe(config))
    if config.prompt is not None and config.answer is not None:
        example = ask(config.prompt, config.data, config.answer)
        rows, names = [Encoder(tokenizer, config.data).encode(example)], ["reward"]
    else:
        data = language.load_data(config, recipe(config), tokenizer)
        rows, names = data.test.sequences(language.checked_index(data, index)), ["chosen", "rejected"]
    batch = pad_sequences(rows, 0)
    with torch.no_grad():
        scores = model.eval()(batch["input_ids"], batch["attention_mask"]).tolist()
    return ", ".join(f"{name} {score:.4f}" for name, score in zip(names, scores, strict=True))


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
