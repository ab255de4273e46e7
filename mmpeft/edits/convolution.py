"""A convolutional bottleneck beside a sublayer, on the grid of patches (Convpass)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import BranchSite
from mmpeft.edits.base import Call, ChangesOutput
from mmpeft.kernels.dropout import dropped


class ConvolutionalBottleneck(ChangesOutput):
    """``y + s U drop(q(conv3x3(q(D z))))`` with q the quick GELU and z the sublayer's normalised input (Convpass).

    The patches are convolved on their square grid, each token in front of them as a picture of its own. D (bottleneck,
    width) starts by Xavier, U and the biases at zero, the kernel at the identity or by Xavier (Jie and Deng 2022).
    """

    def __init__(
        self,
        site: BranchSite,
        *,
        bottleneck: int,
        scale: float,
        dropout: float,
        kernel: Literal["identity", "xavier"],
    ) -> None:
        super().__init__()
        self.prefix, self.scale, self.dropout = site.prefix, scale, dropout
        self.down = nn.Linear(site.width, bottleneck)
        self.conv = nn.Conv2d(bottleneck, bottleneck, 3, padding=1)
        self.up = nn.Linear(bottleneck, site.width)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.conv, self.up):
            nn.init.zeros_(layer.get_parameter("bias"))
        if kernel == "xavier":
            nn.init.xavier_uniform_(self.conv.weight)
        else:
            nn.init.dirac_(self.conv.weight)

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add the bottleneck of the input to the output."""
        hidden = _quick_gelu(F.linear(x, self.down.weight.to(x.dtype), self.down.bias.to(x.dtype)))
        front, patches = hidden[:, : self.prefix], hidden[:, self.prefix :]
        side = math.isqrt(patches.shape[1])
        if side * side != patches.shape[1]:
            raise ValueError(f"convpass needs a square grid of patches, and this model has {patches.shape[1]} of them")
        grid = self._convolve(patches.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
        alone = self._convolve(front.flatten(0, 1)[..., None, None])[..., 0, 0].view_as(front)
        hidden = _quick_gelu(torch.cat([alone, grid], 1))
        hidden = dropped(hidden, self.dropout, self.training)
        return y + F.linear(hidden, self.up.weight.to(x.dtype), self.up.bias.to(x.dtype)) * self.scale

    def _convolve(self, z: Tensor) -> Tensor:
        assert self.conv.bias is not None
        return F.conv2d(z, self.conv.weight.to(z.dtype), self.conv.bias.to(z.dtype), padding=1)


def _quick_gelu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(1.702 * z)
