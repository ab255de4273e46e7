"""PPO: a policy learns from a reward for what it writes; policy, value and reward are adapters of one frozen model.

mmpeft train llm/ppo_manners
mmpeft predict runs/ppo_manners prompt="What is three plus four?"
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

import mmpeft
from mmpeft.assembly.language_config import LanguageConfig, LanguageTraining
from mmpeft.assembly.task import Task
from mmpeft.data.language.tiny.rewards import REWARDS
from mmpeft.objectives.ppo_settings import POLICY, REWARD, VALUE, PPOSettings
from mmpeft.settings import Settings, nearest
from mmpeft.training.config import Monitor

if TYPE_CHECKING:
    from mmpeft.assembly.parts import Parts
    from mmpeft.handle.adapters import Adapters
    from mmpeft.objectives.ppo import PPO


class Training(LanguageTraining):
    """How policy and value function are trained; ``batch_size`` is in prompts."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient."""
    monitor: Monitor | None = Monitor(metric="objective")
    """The validation score that selects the best weights; null keeps the last ones."""


class Reward(Settings):
    """Where rewards come from: exactly one of these."""

    adapter: Path | None = None
    """The adapter's directory of a finished ``llm/reward`` run of the same model: it works on the same backbone."""
    rule: str | None = None
    """The name of a rule for the generated prompts."""

    @model_validator(mode="after")
    def _one(self) -> Reward:
        if (self.adapter is None) == (self.rule is None):
            raise ValueError("give either adapter or rule")
        if self.rule is not None and self.rule not in REWARDS:
            raise ValueError(f"rule: no {self.rule!r}{nearest(self.rule, REWARDS)}")
        return self


class Config(LanguageConfig):
    """One run of PPO."""

    train: Training
    """How the adapters are trained."""
    reward: Reward
    """What is good."""
    ppo: PPOSettings = PPOSettings()
    """The algorithm."""

    @model_validator(mode="after")
    def _two_adapters(self) -> Config:
        if set(self.adapters) != {POLICY, VALUE}:
            raise ValueError(f"adapters: {', '.join(self.adapters)}: PPO trains {POLICY!r} and {VALUE!r}")
        if self.train.gradient_checkpointing:
            raise ValueError("train.gradient_checkpointing: adapters take turns within a step, which it can't repeat")
        return self


def assemble(config: Config) -> Parts:
    """Load the model with a value head, and its tokenizer; the policy learns from what it writes to prompts."""
    from mmpeft.assembly import language
    from mmpeft.assembly.policy import PolicyTrainer
    from mmpeft.data.language.prompts import load_prompts
    from mmpeft.heads.actor_critic import ActorCritic

    def objective(adapters: Adapters, tokenizer: Any) -> PPO:
        return make_objective(config, adapters, tokenizer)

    parts = language.assemble(config, objective, head=ActorCritic, read=load_prompts, speaker=POLICY)
    return replace(parts, head=(VALUE,), trainer=PolicyTrainer)


def make_objective(config: Config, adapters: Adapters, tokenizer: Any) -> PPO:
    """Return PPO's loss with the configured judge; a reward adapter is loaded beside policy and value function."""
    from mmpeft.data.language.encoding import Encoder
    from mmpeft.heads.actor_critic import ActorCritic
    from mmpeft.objectives.generation import Writer
    from mmpeft.objectives.ppo import PPO, judged_by_adapter, judged_by_rule

    model = adapters.modules[""]
    assert isinstance(model, ActorCritic)
    if config.reward.rule is not None:
        judge = judged_by_rule(REWARDS[config.reward.rule])
    else:
        mmpeft.load(model, Path(str(config.reward.adapter)), name=REWARD)
        adapters.activate(POLICY, VALUE, trainable=True)
        judge = judged_by_adapter(model, adapters)
    ends = Encoder(tokenizer, config.data).ends()
    return PPO(adapters, config.ppo, Writer(tokenizer, ends, config.writing.max_new_tokens), judge)


TASK = Task(Config, assemble)

if __name__ == "__main__":
    TASK.main(sys.argv[1:])
