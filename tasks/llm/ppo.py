"""PPO: a policy learns from a reward for what it writes; policy, value and reward are adapters of one frozen model.

mmpeft train llm/ppo_manners
mmpeft predict runs/ppo_manners prompt="What is three plus four?"
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

import mmpeft
from mmpeft.assembly import language, task
from mmpeft.assembly.language import TaskParts
from mmpeft.assembly.language_config import LanguageConfig, LanguageTraining
from mmpeft.assembly.policy import PolicyTrainer
from mmpeft.data.language.encoding import Encoder
from mmpeft.data.language.prompts import load_prompts
from mmpeft.data.language.tiny.rewards import REWARDS
from mmpeft.handle.adapters import Adapters
from mmpeft.heads.actor_critic import ActorCritic
from mmpeft.objectives.generation import Writer
from mmpeft.objectives.ppo import POLICY, PPO, REWARD, VALUE, judged_by_adapter, judged_by_rule
from mmpeft.objectives.ppo_settings import PPOSettings
from mmpeft.settings import Settings, nearest
from mmpeft.training.config import Monitor


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


def recipe(config: Config) -> TaskParts:
    """Return what is particular to this task."""

    def objective(adapters: Adapters, tokenizer: Any) -> PPO:
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

    return TaskParts(
        objective,
        ActorCritic,
        trains_head=(VALUE,),
        data=load_prompts,
        trainer=PolicyTrainer,
        speaker=POLICY,
        loading="from mmpeft.heads.actor_critic import ActorCritic\n\nmodel = ActorCritic({})",
    )


def run(config: Config) -> dict[str, Any]:
    """Train, write the run directory, and return its metrics: scores of the policy, and of the reference (frozen)."""
    return language.run(config, recipe(config))


def check(config: Config) -> None:
    """Print what would be trained, three prompts, and the numbers of one step; write nothing."""
    language.check(config, recipe(config))


def evaluate(config: Config) -> dict[str, float]:
    """Return the test scores of the policy in the run directory of a finished run."""
    return language.evaluate(config, recipe(config))


def predict(config: Config, index: int) -> str:
    """Return what the policy of a finished run answers to ``prompt``, or to a test prompt."""
    return language.predict(config, recipe(config), index)


def main(arguments: list[str]) -> None:
    """Train as the command line says."""
    task.main(run, Config, arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
