"""PPO on one backbone: policy and value are adapters of it, the reference is the model without any."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor, nn

from mmpeft.handle.adapters import Adapters
from mmpeft.heads.actor_critic import ActorCritic
from mmpeft.heads.reward import at_last_token
from mmpeft.objectives.base import Batch, Objective, at_least_single
from mmpeft.objectives.generation import Writer
from mmpeft.objectives.ppo_losses import divergences, policy_loss, prepared, value_loss
from mmpeft.objectives.ppo_settings import POLICY, REWARD, VALUE, PPOSettings

Judge = Callable[[Sequence[Mapping[str, Any]], Sequence[str], Batch], Tensor]
"""From rows, the texts that were written and the batch of tokens to rewards (answers,)."""


def speaking(adapters: Adapters, name: str | None) -> AbstractContextManager[None]:
    """Return a context within which one adapter alone is active; None is the reference."""
    return adapters.off() if name is None else adapters.using(name)


class PPO(Objective):
    """``sum_t max(-A p, -A clip(p)) + w max((V - R)^2, (V' - R)^2) / 2`` over written tokens; see `ppo_losses`.

    Scores of an evaluation, in which the policy draws its answers with a seed of its own: ``reward``, ``kl`` (nats of
    an answer away from the reference), ``objective`` (reward less what the divergence costs), ``length`` (tokens).
    """

    score_names = ("objective", "reward", "kl", "length")

    sums: Tensor
    """Rewards, divergences, lengths and number of answers of the evaluation so far, on this process."""

    def __init__(self, adapters: Adapters, settings: PPOSettings, writer: Writer, judge: Judge) -> None:
        super().__init__()
        self.adapters, self.settings, self.writer, self.judge = adapters, settings, writer, judge
        self.register_buffer("sums", torch.zeros(4, dtype=torch.float64), persistent=False)

    def weight(self, batch: Batch) -> float:
        """Return how many tokens were written."""
        return float(batch["mask"].sum())

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss of answers that were `written`; logs are sums over tokens."""
        settings, mask = self.settings, batch["mask"]
        scores, values = self._scores(model, batch, POLICY), self._values(model, batch)
        policy, clipped = policy_loss(scores, batch["scores"], batch["advantages"], mask, settings.clip)
        value_mask = batch["value_mask"]
        value = value_loss(values, batch["values"], batch["returns"], value_mask, settings.value_clip)
        value = value * (mask.sum() / value_mask.sum())  # each loss is a mean over its own tokens
        logs = {"policy_loss": policy.detach(), "value_loss": value.detach(), "clipped": clipped}
        return policy + settings.value_weight * value, logs

    @torch.no_grad()
    def written(self, model: Any, batch: Batch) -> Batch:
        """Let the policy answer prompts: tokens, log-probabilities by it and the reference, values, rewards, ``kl``."""
        model.eval()
        with speaking(self.adapters, POLICY if self.adapters.active else None):
            answers = self._write(model, batch)
            answers["scores"] = self._scores(model, answers)
        with speaking(self.adapters, None):
            answers["reference"] = self._scores(model, answers)
        answers["values"] = self._values(model, answers)
        said = zip(answers["input_ids"], answers.pop("said"), strict=True)
        texts = [self.writer.text(ids[-len(kept) :][kept].tolist(), ()) for ids, kept in said]
        reward = self.judge(batch["rows"], texts, answers).to(answers["scores"])
        answers["reward"] = reward - self.settings.missing_end * ~answers.pop("ended")
        away = divergences(answers["scores"], answers["reference"], self.settings.estimator)
        answers["kl"] = (away * answers["mask"]).sum(1)
        return answers | prepared(answers, self.settings) | {"id": batch["id"]}

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Let the policy answer (with all adapters off: the reference), and add what came of it."""
        devices = [batch["prompt_ids"].device] if batch["prompt_ids"].device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            answers = self.written(model, batch)
        reward, away, mask = answers["reward"], answers["kl"], answers["mask"]
        self.sums += torch.stack([reward.sum(), away.sum(), mask.sum(), away.new_tensor(len(mask))]).double()

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        *sums, count = reduce(self.sums.clone(), reduction="sum").tolist()
        self.sums.zero_()
        reward, away, length = (total / count for total in sums)
        return {"objective": reward - self.settings.kl * away, "reward": reward, "kl": away, "length": length}

    def _write(self, model: Any, batch: Batch) -> Batch:
        """Draw answers at temperature 1: what is learned from must come from the policy itself."""
        ids, last = self.writer.draw(model.backbone, batch["prompt_ids"], batch["prompt_mask"])
        ends = torch.isin(ids[:, batch["prompt_ids"].shape[1] :], ids.new_tensor(last))
        mask = ends.cumsum(1) - ends.long() == 0
        attention = torch.cat([batch["prompt_mask"], mask.long()], 1)
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        return {
            "input_ids": ids,
            "attention_mask": attention,
            "position_ids": positions,
            "mask": mask.float(),
            "said": mask & ~ends,
            "ended": (ends & mask).any(1),
        }

    def _scores(self, model: nn.Module, batch: Batch, name: str | None = None) -> Tensor:
        """Return the log-probability of every written token, 0 elsewhere; by one adapter, or the active ones."""
        if name is not None:
            with speaking(self.adapters, name):
                return self._scores(model, batch)
        mask = batch["mask"].bool()
        counted = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        counted[:, -mask.shape[1] :] = mask
        passed = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids")}
        scores, _ = model(counted=counted, **passed)
        scores = at_least_single(scores)
        return torch.zeros_like(mask, dtype=scores.dtype).masked_scatter(mask, scores)

    def _values(self, model: Any, batch: Batch) -> Tensor:
        """Return the value in front of every written token."""
        with speaking(self.adapters, VALUE):
            values: Tensor = model.values(batch["input_ids"], batch["attention_mask"], batch["position_ids"])
        return values[:, -batch["mask"].shape[1] - 1 : -1]


def judged_by_adapter(model: ActorCritic, adapters: Adapters) -> Judge:
    """Return a judge that is the adapter ``reward`` of the same backbone."""

    def judge(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], batch: Batch) -> Tensor:
        with speaking(adapters, REWARD):
            numbers = model.values(batch["input_ids"], batch["attention_mask"], batch["position_ids"])
        return at_last_token(numbers, batch["attention_mask"])

    return judge


def judged_by_rule(rule: Callable[[dict[str, Any], str], float]) -> Judge:
    """Return a judge that is a function of a row and the text that was written."""

    def judge(rows: Sequence[Mapping[str, Any]], texts: Sequence[str], batch: Batch) -> Tensor:
        return torch.tensor([rule(dict(row), text) for row, text in zip(rows, texts, strict=True)]).to(batch["mask"])

    return judge
