"""Attention over the results of other adapters: AdapterFusion."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import BranchSite
from mmpeft.edits.base import Call, ChangesOutput
from mmpeft.edits.bottleneck import Bottleneck
from mmpeft.edits.references import Borrowed


class Fusion(ChangesOutput):
    """``y + sum_t w_t V f_t(y)`` with ``w = softmax_t((Q y + q) . (K f_t(y) + k))`` of frozen bottlenecks f_t.

    Q and K (width, width) start as N(0, 0.02^2) with zero biases, V (width, width) at the identity with 1e-6 beside the
    diagonal, so that at first the adapters are averaged (Pfeiffer et al. 2021). ``adapters`` are the bottlenecks of
    other adapters at this site, which stay where they are and needn't be active.
    """

    def __init__(self, site: BranchSite, adapters: Iterable[Bottleneck]) -> None:
        super().__init__()
        self.adapters = Borrowed(tuple(adapters))
        self.query, self.key = nn.Linear(site.width, site.width), nn.Linear(site.width, site.width)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.value = nn.Parameter(torch.eye(site.width) + 1e-6 * (1 - torch.eye(site.width)))

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add the weighted sum of what the adapters make of the output."""
        found = torch.stack([adapter.change(y) for adapter in self.adapters.value], -2)
        query = F.linear(y, self.query.weight.to(y.dtype), self.query.bias.to(y.dtype))
        keys = F.linear(found, self.key.weight.to(y.dtype), self.key.bias.to(y.dtype))
        weights = (keys @ query[..., None]).softmax(-2)
        return y + F.linear((weights * found).sum(-2), self.value.to(y.dtype))

    def extra_repr(self) -> str:
        """How many adapters."""
        return f"{len(self.adapters.value)} adapters"
