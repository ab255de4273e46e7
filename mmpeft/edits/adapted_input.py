"""A linear adapter on the input of a linear layer, which merges into it (RepAdapter)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import LinearSite, Site
from mmpeft.edits.base import Arguments, Binding, Call, ChangesInput, Fold, Merges
from mmpeft.kernels.dropout import dropped


class AdaptedInput(ChangesInput, Merges):
    """``z + s (B drop(A z + a) + b)`` before the layer, B in ``groups`` blocks (RepAdapter, Luo et al. 2023).

    A (bottleneck, in) starts by Xavier, B (in, bottleneck / groups) and the biases at zero.
    """

    shifts = True

    def __init__(self, site: LinearSite, *, bottleneck: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.groups, self.scale, self.dropout = groups, scale, dropout
        self.down = nn.Linear(site.in_features, bottleneck)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.up = nn.Parameter(torch.zeros(groups, site.in_features // groups, bottleneck // groups))
        self.bias = nn.Parameter(torch.zeros(site.in_features))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the input of the linear layer."""
        return self.bind_input(site)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Adapt the input."""
        z = args[0]
        hidden = F.linear(z, self.down.weight.to(z.dtype), self.down.bias.to(z.dtype))
        hidden = dropped(hidden, self.dropout, self.training)
        grouped = hidden.unflatten(-1, (self.groups, -1))
        change = torch.einsum("...gh,goh->...go", grouped, self.up.to(z.dtype)).flatten(-2) + self.bias.to(z.dtype)
        return (z + self.scale * change, *args[1:]), kwargs

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """``W (I + s B A)`` and ``bias + s W (B a + b)``."""
        up = torch.block_diag(*self.up.to(weight))
        change = up @ self.down.weight.to(weight)
        shift = weight @ (up @ self.down.bias.to(weight) + self.bias.to(weight))
        return weight + self.scale * (weight @ change), None if bias is None else bias + self.scale * shift
