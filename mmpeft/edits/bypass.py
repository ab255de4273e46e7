"""A side path along the blocks, which the backbone never sees: Res-Tuning-Bypass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.edits.base import Call, ChangesOutput
from mmpeft.edits.references import Borrowed
from mmpeft.kernels.passed import Passed


class BypassResidual(nn.Module):
    """``z + U gelu(D z + d) + u``: D, U by Xavier, biases nearly zero; with ``zero`` U starts at zero."""

    def __init__(self, width: int, bottleneck: int, *, zero: bool) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, width)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, z: Tensor) -> Tensor:
        """Return z and its change."""
        hidden = F.gelu(F.linear(z, self.down.weight.to(z.dtype), self.down.bias.to(z.dtype)))
        return z + F.linear(hidden, self.up.weight.to(z.dtype), self.up.bias.to(z.dtype))


class BypassLayer(ChangesOutput):
    """``b_l = g R_lateral(x_l) + (1 - g) R_vertical(b_{l-1})`` beside block l; the last replaces the block's output.

    b_0 is the input of the first block, g the sigmoid of a learned scalar from 0; without ``gated`` both terms are
    added as they are. Block outputs x_l are detached, so the backbone runs without a graph (Jiang et al. 2023).
    """

    def __init__(self, width: int, previous: BypassLayer | None, *, bottleneck: int, gated: bool, last: bool) -> None:
        super().__init__()
        self.previous = Borrowed(previous)
        self.last = last
        self.lateral = BypassResidual(width, bottleneck, zero=last)
        self.vertical = BypassResidual(width, bottleneck, zero=last)
        self.gate = nn.Parameter(torch.zeros(1)) if gated else None
        self.passed = Passed()

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Go one layer up; only the last layer's result enters the model."""
        previous = self.previous.value
        below = x.detach() if previous is None else previous.passed.value
        assert below is not None
        lateral, vertical = self.lateral(y.detach()), self.vertical(below)
        if self.gate is None:
            state = lateral + vertical
        else:
            gate = self.gate.sigmoid().to(y.dtype)
            state = gate * lateral + (1 - gate) * vertical
        if self.last:
            return state
        self.passed.value = state
        return y
