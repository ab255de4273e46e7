"""Continued pretraining: a language model goes on with texts of your own, packed.

mmpeft train llm/pretrain_folder data.path=my_texts
mmpeft predict runs/pretrain_folder prompt="Once upon"
accelerate launch tasks/llm/pretrain.py configs/llm/pretrain_folder.yaml
"""

from __future__ import annotations

import sys
from typing import Any

from mmpeft.assembly import language, task
from mmpeft.assembly.language import TaskParts
from mmpeft.assembly.language_config import LanguageConfig
from mmpeft.data.language.config import LanguageData, Packing
from mmpeft.objectives.next_token import LanguageModelling


class PretrainingData(LanguageData):
    """Documents, one after another, cut at every ``max_length`` tokens."""

    packing: Packing = "wrapped"
    """Several documents in one training sample, none of which sees another: ``wrapped`` cuts the row of all documents
    at every ``max_length``, ``whole`` fills samples with whole documents; ``none`` takes each by itself."""


class Config(LanguageConfig):
    """One run of continued pretraining."""

    data: PretrainingData
    """Where texts come from, and how they become tokens."""


RECIPE = TaskParts(lambda adapters, tokenizer: LanguageModelling())


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: scores with the adapter, and without (frozen)."""
    return language.run(config, RECIPE)


def check(config: Config) -> None:
    """Print what would be trained, three samples, and the numbers of one step; write nothing."""
    language.check(config, RECIPE)


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the adapter in the run directory of a finished run."""
    return language.evaluate(config, RECIPE)


def predict(config: Config, index: int) -> str:
    """Return how the adapter of a finished run goes on after ``prompt``."""
    return language.predict(config, RECIPE, index)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
