"""What every objective offers the trainer: a loss to minimise, and scores to report."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]
"""A collated batch: tensors by name, the samples' ids under ``id``, and under ``counted`` whether it counts."""


def at_least_single(tensor: Tensor) -> Tensor:
    """Return a tensor in which losses can be computed: half precision is widened to 32 bits, doubles stay doubles."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class Objective(nn.Module):
    """A loss as a *sum* with its weight, so that any split of a batch over passes and processes has the same gradient.

    The trainer minimises ``sum of losses / sum of weights``, both taken over all batches of an optimizer step.
    """

    score_names: tuple[str, ...] = ()
    """Names of what ``compute`` may return, so that a wrong ``train.monitor.metric`` is told before training; () is
    not told."""

    def weight(self, batch: Batch) -> float:
        """Return what the loss of this batch is a sum over: the number of samples, unless a subclass says tokens."""
        return len(batch["id"])

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss, a scalar with a graph, and further scalar sums to log (each over the same weight)."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def idle(self, model: nn.Module, batch: Batch) -> None:
        """Pass a batch that doesn't count through the model: sharded models need the pass on every process."""
        self.loss(model, batch)

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Add a batch of an evaluation to the scores; called without gradients."""
        raise TypeError(f"{type(self).__name__} has no scores")

    def compute(self) -> dict[str, float]:
        """Return the scores of all batches since the last call, over all processes, and start again."""
        raise TypeError(f"{type(self).__name__} has no scores")
