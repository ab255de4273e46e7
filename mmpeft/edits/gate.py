"""Gates: how much of an edit's change a sample, or each of its tokens, gets (UniPELT)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import BranchSite, LinearSite, Site

Gating = Literal["auto", "token", "sequence"]
CAUSAL = ("decoder", "text")
"""Towers whose tokens see only those in front of them."""


class Gate(nn.Module):
    """``g = sigmoid(w . z + b)`` of what an edit reads, per token or, of a ``sequence``, its mean (Mao et al. 2022).

    The mean is the paper's, and runs over padding too. Behind a causal mask it would tell a token of those behind it,
    and with a cache of keys and values, be another one in each step.
    """

    def __init__(self, width: int, *, sequence: bool) -> None:
        super().__init__()
        self.sequence = sequence
        self.weight = nn.Parameter(torch.empty(1, width))
        self.bias = nn.Parameter(torch.zeros(1))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, z: Tensor) -> Tensor:
        """Return the gate (batch, length or 1, 1) for z (batch, length, width)."""
        open_ = F.linear(z, self.weight.to(z.dtype), self.bias.to(z.dtype)).sigmoid()
        return open_.mean(1, keepdim=True) if self.sequence else open_

    def extra_repr(self) -> str:
        """Width and kind."""
        return f"{self.weight.shape[1]}, {'mean of the sequence' if self.sequence else 'per token'}"


def gate_of(site: Site, gating: Gating, width: int = 0) -> Gate:
    """Return a gate for an edit at this site; ``auto`` averages where all tokens see each other, and only there.

    What enters has ``width`` features, where the site doesn't say.
    """
    if isinstance(site, LinearSite | BranchSite):
        width = site.in_features if isinstance(site, LinearSite) else site.width
    if not width:
        raise ValueError(f"gate: {gating!r} at {site.path}: it is not known how wide the tokens there are")
    return Gate(width, sequence=gating == "sequence" or (gating == "auto" and site.tower not in CAUSAL))
