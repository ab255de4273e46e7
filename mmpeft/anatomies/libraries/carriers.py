"""Attention classes that read their projection weights past any layer, with their projections done by the graft."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.hosts import graft_of, plain_class


def multihead(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``nn.MultiheadAttention.forward`` with edits on its projections; same arguments, shapes and results.

    The weights, where they are asked for, are those of its own keys; dropout draws for them once more.
    """
    batched = query.ndim == 3
    same = query is key and key is value
    inputs = [x if batched else x.unsqueeze(0 if self.batch_first else 1) for x in (query, key, value)]
    inputs = [x if self.batch_first else x.transpose(0, 1) for x in inputs]
    q, k, v = (_heads(x, self.num_heads) for x in _project(self, inputs, same))
    mask = _mask(q, k, attn_mask, key_padding_mask)
    dropout = self.dropout if self.training else 0.0
    weights = None
    if need_weights:
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    y = self.out_proj(y.transpose(1, 2).flatten(2))
    y = y if self.batch_first else y.transpose(0, 1)
    if weights is not None and average_attn_weights:
        weights = weights.mean(1)
    if not batched:
        y = y.squeeze(0 if self.batch_first else 1)
        weights = None if weights is None else weights.squeeze(0)
    return y, weights


def _project(self: nn.Module, inputs: list[Tensor], same: bool) -> list[Tensor]:
    graft = graft_of(self)
    if same:
        return list(graft.project(self, inputs[0]).chunk(3, -1))
    return [graft.project(self, x).chunk(3, -1)[part] for part, x in enumerate(inputs)]


def _heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _mask(q: Tensor, k: Tensor, attention: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Return one additive mask, (batch, heads or 1, queries, keys), of masks that hide where True or that are added."""
    mask = None if attention is None else _additive(attention, q.dtype)
    if mask is not None and mask.ndim == 3:
        mask = mask.view(q.shape[0], -1, *mask.shape[1:]).expand(-1, q.shape[1], -1, -1)
    if padding is not None:
        hidden = _additive(padding, q.dtype).view(q.shape[0], 1, 1, k.shape[2])
        mask = hidden if mask is None else mask + hidden
    return mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, float("-inf"))


def open_clip_attention(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """open_clip's ``Attention.forward`` with edits on its projections: x (batch, tokens, width) to the same shape.

    It takes what its class takes: a mask, and in releases that attend to another sequence that one's ``k_x``, ``v_x``.
    """
    given = dict(zip(_arguments(plain_class(self)), args, strict=False)) | kwargs
    mask, k_x, v_x = (given.pop(name, None) for name in ("attn_mask", "k_x", "v_x"))
    if any(value is not None for value in given.values()):
        raise ValueError(f"{', '.join(given)}: unknown to the edits of {plain_class(self).__name__}'s projections")
    k_x = x if k_x is None else k_x
    v_x = k_x if v_x is None else v_x
    q, k, v = (_heads(part, self.num_heads) for part in _project(self, [x, k_x, v_x], x is k_x and k_x is v_x))
    mask = None if mask is None else _additive(mask, q.dtype)
    if mask is not None and mask.ndim == 3:
        mask = mask.view(len(x), -1, *mask.shape[1:])
    scale = None
    if self.logit_scale is not None:
        q = F.normalize(q, dim=-1) * self.logit_scale.clamp(max=self.logit_scale_max).exp()
        k, scale = F.normalize(k, dim=-1), 1.0
    else:
        q, k = self.ln_q(q), self.ln_k(k)
    dropout = self.attn_drop.p if self.training else 0.0
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    y = y if self.head_scale is None else y * self.head_scale
    y = self.ln_inner(y.transpose(1, 2).flatten(2))
    result: Tensor = self.out_drop(self.out_proj(y))
    return result


_ARGUMENTS: dict[type, tuple[str, ...]] = {}


def _arguments(cls: type) -> tuple[str, ...]:
    """Return the names of what a class's forward takes behind its first argument; kept, for torch.compile to see."""
    if cls not in _ARGUMENTS:
        _ARGUMENTS[cls] = tuple(inspect.signature(cls.forward).parameters)[2:]  # type: ignore[attr-defined]
    return _ARGUMENTS[cls]


def open_clip_pool(self: Any, x: Tensor) -> Tensor:
    """open_clip's ``AttentionPool2d.forward`` with its projections called: x (batch, width, h, w) to (batch, out)."""
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding.to(x.dtype)
    projected = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)
    q, k, v = (_heads(part, self.num_heads) for part in projected)
    pooled: Tensor = self.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))[:, 0]
    return pooled
