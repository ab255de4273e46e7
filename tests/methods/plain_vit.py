"""A vision transformer in plain functions, for formulas that are derived again from their papers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
HEADS, DEPTH = 2, 3


class Plain:
    """A pre-norm vision transformer in plain functions, with a place for each method to change."""

    def __init__(self, base: Weights, own: Weights) -> None:
        self.p, self.a = base, own

    def __call__(self, image: Tensor) -> Tensor:
        x = F.conv2d(image, self.p["patch_embed.proj.weight"], self.p["patch_embed.proj.bias"], stride=8)
        x = self.embedded(x.flatten(2).transpose(1, 2))
        x = torch.cat([self.p["cls_token"].expand(len(x), -1, -1), x], 1) + self.p["pos_embed"]
        for i in range(DEPTH):
            x = entering = self.before_block(i, x)
            h = self.norm(f"blocks.{i}.norm1", x)
            x = x + self.attention_branch(i, x, h, self.attention(i, h))
            h = self.norm(f"blocks.{i}.norm2", x)
            up = F.gelu(self.linear(f"blocks.{i}.mlp.fc1", h))
            x = x + self.mlp_branch(i, x, h, self.linear(f"blocks.{i}.mlp.fc2", up))
            x = self.after_block(i, entering, x)
        x = self.features(image, self.norm("norm", x)[:, 0])
        return F.linear(x, self.p["head.weight"], self.p["head.bias"])

    def attention(self, i: int, h: Tensor) -> Tensor:
        q, k, v = self.qkv(i, h).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.linear(f"blocks.{i}.attn.proj", mixed.transpose(1, 2).flatten(2))

    def qkv(self, i: int, h: Tensor) -> Tensor:
        return self.linear(f"blocks.{i}.attn.qkv", h)

    def linear(self, path: str, x: Tensor) -> Tensor:
        return x @ self.p[f"{path}.weight"].T + self.p[f"{path}.bias"]

    def norm(self, path: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * self.p[f"{path}.weight"] + self.p[f"{path}.bias"]

    def embedded(self, x: Tensor) -> Tensor:
        return x

    def before_block(self, i: int, x: Tensor) -> Tensor:
        return x

    def attention_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        return y

    def mlp_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        return y

    def after_block(self, i: int, entering: Tensor, x: Tensor) -> Tensor:
        return x

    def features(self, image: Tensor, f: Tensor) -> Tensor:
        return f
