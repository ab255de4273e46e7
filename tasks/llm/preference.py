"""Preference alignment: DPO and its variants, ORPO, KTO; the reference policy is the adapter switched off.

mmpeft train llm/dpo_pairs data.path=my_pairs.jsonl
mmpeft predict runs/dpo_pairs prompt="What is the capital of France?"
accelerate launch tasks/llm/preference.py configs/llm/dpo_pairs.yaml
"""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mmpeft.assembly import language, task
from mmpeft.assembly.language import TaskParts
from mmpeft.assembly.language_config import LanguageConfig, LanguageTraining
from mmpeft.assembly.reference_policy import precompute_reference
from mmpeft.handle.adapters import Adapters
from mmpeft.objectives.preference import Preference, SinglePreference
from mmpeft.objectives.preference_settings import PreferenceSettings


class PreferenceTraining(LanguageTraining):
    """How the adapters are trained."""

    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Peak learning rate."""


class Config(LanguageConfig):
    """One run of preference alignment."""

    train: PreferenceTraining
    """How the adapters are trained."""
    loss: Annotated[
        PreferenceSettings, BeforeValidator(lambda loss: {"name": loss} if isinstance(loss, str) else loss)
    ] = PreferenceSettings()
    """What is minimised: a name, or ``PreferenceSettings``."""
    reference: Literal["off", "precomputed"] = "off"
    """``off`` runs the model without its adapters in every step; ``precomputed`` does so once, before training."""

    @model_validator(mode="after")
    def _comparable(self) -> Config:
        if self.reference == "precomputed" and not self.loss.needs_reference:
            raise ValueError(f"reference: 'precomputed': loss.name: {self.loss.name} needs no reference: off")
        if self.data.name == "unpaired" and self.loss.name != "kto":
            raise ValueError(f"loss.name: {self.loss.name!r} compares answers, and data.name: unpaired has one: kto")
        return self


def recipe(config: Config) -> TaskParts:
    """Return what is particular to this task."""

    def objective(adapters: Adapters, tokenizer: Any) -> Preference:
        kind = SinglePreference if config.loss.name == "kto" else Preference
        return kind(adapters, config.loss)

    return TaskParts(objective, shape="labels" if config.loss.name == "kto" else "pairs")


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics."""
    prepare = precompute_reference if config.reference == "precomputed" else None
    return language.run(config, recipe(config), frozen=False, prepare=prepare)


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
