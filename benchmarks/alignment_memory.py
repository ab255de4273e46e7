"""Memory and time of a PPO step: four roles as adapters of one frozen Llama, beside four copies of it.

python benchmarks/alignment_memory.py            about a minute; --write adds the table to benchmarks/RESULTS.md

Both sides train LoRA for policy and value with the same code, and are checked to write the same and have the same loss.
The copies of value function and reward model have no output layer, and the reward copy no adapter: as if it was merged.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from measure import Arm, Row, counted, interleave, peak, publish, timed
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import mmpeft
from mmpeft.heads.actor_critic import ActorCritic
from mmpeft.heads.reward import ScalarScorer
from mmpeft.objectives.base import Batch
from mmpeft.objectives.generation import Writer
from mmpeft.objectives.ppo import POLICY, PPO, REWARD, VALUE, judged_by_adapter
from mmpeft.objectives.ppo_settings import PPOSettings
from mmpeft.zoo.language_models import load_text_tokenizer

LORA = mmpeft.LoRA(rank=8, targets="all")
PROMPTS, LENGTH, NEW = 4, 16, 16
TOKENIZER: Any = load_text_tokenizer("tiny/llm")
WRITER = Writer(TOKENIZER, [TOKENIZER.eos_token_id], NEW)


def backbone(dtype: torch.dtype) -> LlamaForCausalLM:
    """Return the frozen model, the same at each call."""
    torch.manual_seed(0)
    size = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 12, "num_attention_heads": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(TOKENIZER), **size)).to(dtype).requires_grad_(False)


class CopiesPPO(PPO):
    """PPO whose reference and value function are models of their own."""

    reference: ActorCritic
    critic: ScalarScorer

    def _scores(self, model: nn.Module, batch: Batch, name: str | None = None) -> Tensor:
        return super()._scores(model if name or self.adapters.active else self.reference, batch, name)

    def _values(self, model: Any, batch: Batch) -> Tensor:
        return self.critic.values(batch["input_ids"], batch["attention_mask"])[:, -NEW - 1 : -1]


@dataclass
class Side:
    """All models of one side, and what makes a step with them."""

    models: list[nn.Module]
    objective: PPO
    optimizer: torch.optim.Optimizer

    def written(self) -> Batch:
        """Let the policy answer, the same at each call."""
        torch.manual_seed(1)
        ids = torch.randint(5, len(TOKENIZER), (PROMPTS, LENGTH))
        batch = {"prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "rows": [{}] * PROMPTS, "id": ["-"] * PROMPTS}
        return self.objective.written(self.models[0], batch)

    def loss(self) -> Tensor:
        """Return the loss of new answers."""
        return self.objective.loss(self.models[0].train(), self.written())[0]

    def step(self) -> None:
        """Make one step, as PPO with one pass over its answers does."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def resident(self) -> tuple[int, int]:
        """Return the bytes of all weights, and of AdamW's moments."""
        weights = {id(own): own.nbytes for model in self.models for own in model.parameters()}
        moments = [own for state in self.optimizer.state.values() for own in state.values()]
        return sum(weights.values()), sum(own.nbytes for own in moments)


def one_backbone(dtype: torch.dtype) -> Side:
    """Return four roles on one model."""
    model = ActorCritic(backbone(dtype))
    for name in (POLICY, VALUE, REWARD):
        mmpeft.adapt(model, [LORA] if name == POLICY else [LORA, mmpeft.LinearProbe()], name=name)
    adapters = mmpeft.adapters(model)
    adapters.activate(REWARD, trainable=False)
    adapters.activate(POLICY, VALUE, trainable=True)
    objective = PPO(adapters, PPOSettings(), WRITER, judged_by_adapter(model, adapters))
    trained = [*adapters.parameters(POLICY), *adapters.parameters(VALUE)]
    return Side([model], objective, torch.optim.AdamW(trained, lr=1e-4))


def four_copies(dtype: torch.dtype) -> Side:
    """Return a model for each role; the new layers begin as that of the one backbone does, from the same seed."""
    policy, reference = ActorCritic(backbone(dtype)), ActorCritic(backbone(dtype))
    critic, judge = ScalarScorer(backbone(dtype)), ScalarScorer(backbone(dtype))
    mmpeft.adapt(policy, LORA, name=POLICY)
    mmpeft.adapt(critic, [LORA, mmpeft.LinearProbe()], name=VALUE)

    def judged(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], batch: Batch) -> Tensor:
        return judge(batch["input_ids"], batch["attention_mask"])

    objective = CopiesPPO(mmpeft.adapters(policy), PPOSettings(), WRITER, judged)
    objective.reference, objective.critic = reference, critic
    trained = [*mmpeft.adapters(policy).parameters(), *mmpeft.adapters(critic).parameters()]
    return Side([policy, reference, critic, judge], objective, torch.optim.AdamW(trained, lr=1e-4))


def compare(dtype: torch.dtype, rounds: int) -> list[Row]:
    """Return the rows of one precision."""
    ours, theirs = one_backbone(dtype), four_copies(dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(ours.loss(), theirs.loss(), rtol=tolerance, atol=tolerance)
    times = interleave(rounds, ours=Arm(lambda _: ours.step()), copies=Arm(lambda _: theirs.step()))
    (weights, moments), (their_weights, their_moments) = ours.resident(), theirs.resident()
    peaks = []
    for side in (ours, theirs):
        side.optimizer.zero_grad()
        peaks.append(peak(side.step))
    name = str(dtype).removeprefix("torch.")
    return [
        counted(f"{name}: weights with adapters", weights, their_weights),
        counted(f"{name}: AdamW's moments", moments, their_moments),
        counted(f"{name}: most bytes at once in a step, beside these", *peaks),
        counted(f"{name}: sum", weights + moments + peaks[0], their_weights + their_moments + peaks[1]),
        timed(f"{name}: step", times, "copies"),
    ]


def main() -> None:
    """Measure both precisions and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for dtype in (torch.float32, torch.bfloat16) for row in compare(dtype, rounds=2)]
    sides = ("one backbone", "four copies")
    publish("alignment_memory", rows, ("torch", "transformers"), options.write, sides)


if __name__ == "__main__":
    main()
