"""Preference alignment: DPO and its variants, ORPO, KTO; the reference policy is the adapter switched off.

mmpeft train llm/dpo_pairs data.path=my_pairs.jsonl
mmpeft predict runs/dpo_pairs prompt="What is the capital of France?"
accelerate launch tasks/llm/preference.py configs/llm/dpo_pairs.yaml
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from mmpeft.assembly.language_config import LanguageConfig, LanguageTraining
from mmpeft.assembly.task import Task
from mmpeft.objectives.preference_settings import SINGLE, PreferenceSettings

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts
    from mmpeft.handle.adapters import Adapters
    from mmpeft.objectives.preference import Preference


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
        if self.data.name == "unpaired" and self.loss.name not in SINGLE:
            wanted = " or ".join(SINGLE)
            raise ValueError(
                f"loss.name: {self.loss.name!r} compares answers, and data.name: unpaired has one: {wanted}"
            )
        return self


def assemble(config: Config) -> Parts:
    """Load the model and its tokenizer; what is preferred is learned, from pairs of answers or single ones."""
    from mmpeft.assembly import language
    from mmpeft.assembly.reference_policy import precompute_reference
    from mmpeft.objectives.preference import Preference, SinglePreference

    single = config.loss.name in SINGLE

    def objective(adapters: Adapters, tokenizer: Any) -> Preference:
        return (SinglePreference if single else Preference)(adapters, config.loss)

    parts = language.assemble(config, objective, shape="labels" if single else "pairs")
    prepare = precompute_reference if config.reference == "precomputed" else None
    return replace(parts, frozen=False, prepare=prepare)


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
