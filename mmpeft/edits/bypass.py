"""A side path along the blocks, which the backbone never sees: Res-Tuning-Bypass."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.edits.base import Call, ChangesOutput
from mmpeft.edits.references import Borrowed
from mmpeft.kernels.passed import Passed

Weight = float | Literal["gate", "learned", "channels"]


class BypassResidual(nn.Module):
    """``z + w (U gelu(D z + d) + u)``: D, U by Xavier, biases nearly zero; with ``zero`` U and u start at zero.

    w is a number, or learned from 1, one or one per channel; or a ``gate``, one number per sample: the mean over its
    tokens of ``sigmoid(g . c + b)`` of the change c itself (swift's code). With ``groups`` the channels i, i + groups,
    i + 2 groups ... are group i, and one pair of D (bottleneck, width / groups) and U serves every group alone; D and
    U then start by Kaiming with biases from N(0, 1) (swift's res_group_adapter).
    """

    def __init__(self, width: int, bottleneck: int, *, zero: bool, weight: Weight, groups: int | None = None) -> None:
        super().__init__()
        if width % (groups or 1):
            raise ValueError(f"groups: {groups} does not divide the width {width} of these blocks")
        self.factor, self.groups = weight if isinstance(weight, float) else 1.0, groups
        self.gate = nn.Linear(width, 1) if weight == "gate" else None
        learned = {"learned": 1, "channels": width}.get(str(weight))
        self.scale = None if learned is None else nn.Parameter(torch.ones(learned))
        inner = width // (groups or 1)
        self.down, self.up = nn.Linear(inner, bottleneck), nn.Linear(bottleneck, inner)
        self._reset()
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def _reset(self) -> None:
        for layer in (self.down, self.up):
            if self.groups is None:
                nn.init.xavier_uniform_(layer.weight)
            else:
                nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
            nn.init.normal_(layer.bias, std=1e-6 if self.groups is None else 1.0)

    def forward(self, z: Tensor) -> Tensor:
        """Return z and its change."""
        change = self._change(z) if self.groups is None else self._grouped(z, self.groups)
        if self.gate is not None:
            opened = F.linear(change, self.gate.weight.to(z.dtype), self.gate.bias.to(z.dtype)).sigmoid()
            change = change * opened.mean(1, keepdim=True)
        return z + change * (self.factor if self.scale is None else self.scale.to(z.dtype))

    def _change(self, z: Tensor) -> Tensor:
        hidden = F.gelu(F.linear(z, self.down.weight.to(z.dtype), self.down.bias.to(z.dtype)))
        return F.linear(hidden, self.up.weight.to(z.dtype), self.up.bias.to(z.dtype))

    def _grouped(self, z: Tensor, groups: int) -> Tensor:
        return self._change(z.unflatten(-1, (-1, groups)).mT).mT.flatten(-2)


class BypassLayer(ChangesOutput):
    """``b_l = g R_lateral(x_l) + (1 - g) R_vertical(b_{l-1})`` beside block l; the last replaces the block's output.

    b_0 is the input of the first block, g the sigmoid of a learned scalar from 0; without ``gated`` both terms are
    added as they are. Block outputs x_l are detached, so the backbone runs without a graph (Jiang et al. 2023).
    """

    def __init__(
        self,
        width: int,
        previous: BypassLayer | None,
        *,
        bottleneck: int,
        gated: bool,
        last: bool,
        weight: Weight = 1.0,
        groups: int | None = None,
    ) -> None:
        super().__init__()
        self.previous = Borrowed(previous)
        self.last = last
        options: dict[str, Any] = {"zero": last, "weight": weight, "groups": groups}
        self.lateral, self.vertical = (BypassResidual(width, bottleneck, **options) for _ in range(2))
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
