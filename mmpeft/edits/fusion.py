"""Attention over the results of other adapters: AdapterFusion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import BranchSite, Site
from mmpeft.edits.base import Binding, Call, ChangesOutput
from mmpeft.edits.bottleneck import Bottleneck
from mmpeft.edits.references import Borrowed


class Fusion(ChangesOutput):
    """``y + sum_t w_t V f_t(z)`` with ``w = softmax_t((Q z + q) . (K f_t(z) + k))`` of frozen bottlenecks f_t.

    z is what the bottlenecks read: the sublayer's output y, or LN(y + x) (see `Bottleneck`). Q and K (width, width)
    start as N(0, 0.02^2) with zero biases, V (width, width) at the identity with 1e-6 beside the diagonal, so that at
    first the adapters are averaged (Pfeiffer et al. 2021). ``adapters`` are the bottlenecks of other adapters at this
    site, which stay where they are and needn't be active.
    """

    def __init__(self, site: BranchSite, adapters: Iterable[Bottleneck]) -> None:
        super().__init__()
        self.adapters = Borrowed(tuple(adapters))
        self.query, self.key = nn.Linear(site.width, site.width), nn.Linear(site.width, site.width)
        for layer in (self.query, self.key):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.value = nn.Parameter(torch.eye(site.width) + 1e-6 * (1 - torch.eye(site.width)))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach where the bottlenecks do."""
        return [replace(binding, edit=self) for binding in self.adapters.value[0].bind(site)]

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add the weighted sum of what the adapters make of what they read."""
        z = self.adapters.value[0].read(x, y, call)
        changes = torch.stack([adapter.change(z) for adapter in self.adapters.value], -2)
        query = F.linear(z, self.query.weight.to(z.dtype), self.query.bias.to(z.dtype))
        keys = F.linear(changes, self.key.weight.to(z.dtype), self.key.bias.to(z.dtype))
        weights = (keys @ query[..., None]).softmax(-2)
        return y + F.linear((weights * changes).sum(-2), self.value.to(y.dtype))

    def extra_repr(self) -> str:
        """How many adapters."""
        return f"{len(self.adapters.value)} adapters"
