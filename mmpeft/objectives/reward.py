"""Reward models: of two answers the better one gets the larger number."""

from __future__ import annotations

import torch
from accelerate.utils import reduce
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from mmpeft.objectives.base import Batch, Objective


class RewardModelling(Objective):
    """Bradley-Terry: ``-log sigmoid(r_c - r_r - margin) + c (r_c + r_r)^2`` by a `heads.reward.ScalarScorer`.

    The first half of a batch's rows is chosen, the second rejected; a sum over pairs. ``centering`` (c) draws rewards
    towards 0 (Eisenstein et al. 2023, arXiv:2312.09244). Scores: ``loss``, ``accuracy`` (pairs in the right order),
    ``margin`` (mean difference), ``chosen_reward`` and ``rejected_reward``.
    """

    score_names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")

    sums: Tensor
    """Loss, right pairs, both rewards, and number of pairs of the evaluation so far, on this process."""

    def __init__(self, centering: float = 0.0) -> None:
        super().__init__()
        self.centering = centering
        self.register_buffer("sums", torch.zeros(5, dtype=torch.float64), persistent=False)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, and summed over pairs ``accuracy`` and ``margin``."""
        chosen, rejected = model(batch["input_ids"], batch["attention_mask"]).chunk(2)
        logs = {"accuracy": (chosen > rejected).sum().float(), "margin": (chosen - rejected).detach().sum()}
        return self._losses(chosen, rejected, batch).sum(), logs

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add pairs to the sums."""
        chosen, rejected = model(batch["input_ids"], batch["attention_mask"]).chunk(2)
        parts = (self._losses(chosen, rejected, batch), chosen > rejected, chosen, rejected, torch.ones_like(chosen))
        self.sums += torch.stack([part.double().sum() for part in parts])

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        *sums, count = reduce(self.sums.clone(), reduction="sum").tolist()
        self.sums.zero_()
        loss, accuracy, chosen, rejected = (total / count for total in sums)
        rewards = {"chosen_reward": chosen, "rejected_reward": rejected}
        return {"loss": loss, "accuracy": accuracy, "margin": chosen - rejected, **rewards}

    def _losses(self, chosen: Tensor, rejected: Tensor, batch: Batch) -> Tensor:
        by_how_much = batch["margin"].to(chosen)
        return -logsigmoid(chosen - rejected - by_how_much) + self.centering * (chosen + rejected) ** 2
