"""Formulas of LoRA's kin, of LLM-Adapters' placements, and of what prefixes, deltas and adapters make together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from plain_vit import HEADS, Plain, Weights
from torch import Tensor


class FixedA(Plain):
    """W x + alpha / r B A x, on q and v or on whole layers."""

    name = "lora_fa"

    def delta(self, path: str, x: Tensor) -> Tensor:
        a, b = (self.a.get(f"{path}.{self.name}.lora_{factor}") for factor in "AB")
        return torch.zeros((), dtype=x.dtype) if a is None or b is None else 1.5 * ((x @ a.T) @ b.T)

    def linear(self, path: str, x: Tensor) -> Tensor:
        return super().linear(path, x) + self.delta(path, x)

    def qkv(self, i: int, h: Tensor) -> Tensor:
        parts = zip("qkv", super().qkv(i, h).chunk(3, -1), strict=True)
        return torch.cat([y + self.delta(f"blocks.{i}.attn.{name}", h) for name, y in parts], -1)


class Studied(FixedA):
    name = "llm_adapter_lora"


class Beside(Plain):
    """W x + b + U tanh(D x) at both layers of the MLP."""

    name = "llm_adapter_parallel"

    def adapter(self, path: str, z: Tensor) -> Tensor:
        down, up = (self.a[f"{path}.{self.name}.{side}.weight"] for side in ("down", "up"))
        return torch.tanh(z @ down.T) @ up.T

    def linear(self, path: str, x: Tensor) -> Tensor:
        y = super().linear(path, x)
        return y + self.adapter(path, x) if "mlp" in path else y


class Behind(Beside):
    """o + U tanh(D o) with o = W x + b, at the MLP's second layer."""

    name = "llm_adapter_series"

    def linear(self, path: str, x: Tensor) -> Tensor:
        y = Plain.linear(self, path, x)
        return y + self.adapter(path, y) if path.endswith("fc2") else y


class Prefixed(Plain):
    """softmax(q [P_k; k]^T / sqrt(d)) [P_v; v]."""

    name = "prefix_tuning"

    def attention(self, i: int, h: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(i, h).chunk(3, -1))
        gate = self.gate(f"blocks.{i}.attn.kernel", h)
        k, v = (torch.cat([gate * self.prefix(i, name), own], 2) for name, own in (("keys", k), ("values", v)))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        return self.linear(f"blocks.{i}.attn.proj", mixed.transpose(1, 2).flatten(2))

    def prefix(self, i: int, name: str) -> Tensor:
        return self.a[f"blocks.{i}.attn.kernel.{self.name}.{name}"].unflatten(-1, (HEADS, -1)).transpose(0, 1)

    def gate(self, path: str, z: Tensor) -> Tensor:
        return z.new_ones(len(z), 1, 1, 1)

    def bottleneck(self, path: str, z: Tensor) -> Tensor:
        a = {key.removeprefix(f"{path}.{self.name}."): value for key, value in self.a.items() if f"{path}." in key}
        return torch.relu(z @ a["down.weight"].T + a["down.bias"]) @ a["up.weight"].T + a["up.bias"]


class MixAndMatch(Prefixed):
    """The prefix, and y + 4 (U relu(D x + d) + u) beside the MLP."""

    name = "mam"

    def mlp_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        return y + 4 * self.bottleneck(f"blocks.{i}.mlp", normed)


class Gated(Prefixed):
    """Each with g = mean over the sequence of sigmoid(w . z + b): g B A x, g P_k and g P_v, g times the adapter."""

    name = "unipelt"

    def gate(self, path: str, z: Tensor) -> Tensor:
        w, b = (self.a[f"{path}.{self.name}.input_gate.{name}"] for name in ("weight", "bias"))
        return torch.sigmoid(z @ w.T + b).mean((1, 2))[:, None, None, None]

    def qkv(self, i: int, h: Tensor) -> Tensor:
        q, k, v = super().qkv(i, h).chunk(3, -1)
        return torch.cat([q + self.delta(f"blocks.{i}.attn.q", h), k, v + self.delta(f"blocks.{i}.attn.v", h)], -1)

    def delta(self, path: str, x: Tensor) -> Tensor:
        a, b = (self.a[f"{path}.{self.name}.lora_{factor}"] for factor in "AB")
        return self.gate(path, x)[:, 0] * ((x @ a.T) @ b.T)

    def mlp_branch(self, i: int, stream: Tensor, normed: Tensor, y: Tensor) -> Tensor:
        return y + self.gate(f"blocks.{i}.mlp", y)[:, 0] * self.bottleneck(f"blocks.{i}.mlp", y)


SMALL: dict[str, Any] = {"tokens": 3, "hidden": None}
UNIFIED: list[tuple[dict[str, Any], Callable[[Weights, Weights], Plain]]] = [
    ({"method": "lora_fa", "rank": 2, "alpha": 3}, FixedA),
    ({"method": "llm_adapter_lora", "rank": 2, "alpha": 3, "dropout": 0.0}, Studied),
    ({"method": "llm_adapter_parallel", "bottleneck": 4}, Beside),
    ({"method": "llm_adapter_series", "bottleneck": 4}, Behind),
    ({"method": "prefix_tuning", **SMALL}, Prefixed),
    ({"method": "mam", "bottleneck": 4, **SMALL}, MixAndMatch),
    ({"method": "unipelt", "rank": 2, "bottleneck": 4, **SMALL}, Gated),
]
"""Method and formula."""
ELSEWHERE = {"ladder_side_tuning", "prompt_tuning", "p_tuning"}
"""Methods for language models alone, with formulas in test files of their own."""
