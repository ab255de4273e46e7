"""The one attention function: ``softmax(s q k^T + mask) v``, by the kernel that is asked for and no other."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import handle_torch_function, has_torch_function

from mmpeft.kernels.backends import Backend
from mmpeft.optional import require
from mmpeft.settings import nearest

KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "mem_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
HALF = (torch.float16, torch.bfloat16)
UNGROUPED = ("mem_efficient", "xformers")
"""Kernels that want as many heads of keys as of queries."""


@dataclass(frozen=True, eq=False)
class Extra:
    """Keys and values (batch or 1, heads, tokens, head width) in front of an attention's own; every query sees them.

    ``shown`` (batch, tokens) limits them to some samples.
    """

    keys: Tensor
    values: Tensor
    shown: Tensor | None = None


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: Backend = "auto",
    extra: Extra | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return what the queries find, (batch, heads, queries, value width).

    Args:
        q: Queries (batch, heads, queries, head width).
        k: Keys (batch, key heads, tokens, head width); each head of keys serves ``heads / key heads`` of queries.
        v: Values (batch, key heads, tokens, value width).
        mask: True where a query sees a key, or a number that is added; broadcast to (batch, heads, queries, tokens).
        causal: Query i sees keys 0 to i. Not together with a mask.
        scale: Factor of the products; by default one over the root of the head width.
        dropout: Share of the weights that is dropped.
        backend: The kernel; ``auto`` and ``sdpa`` let torch choose.
        extra: Further keys and values, in the same softmax.
        soft_cap: The products p are ``c tanh(p / c)`` in front of the mask (Gemma 2).
        sinks: A logit per head (heads) of a key without a value, in the same softmax (gpt-oss).

    Raises:
        ValueError: If the backend can't compute this call on this device, in this precision or with this mask.
        ImportError: If the backend's library is not installed.
    """
    if mask is not None and causal:
        raise ValueError("attention: a mask and causal=True: put the one into the other")
    queries = q.shape[-2]
    if extra is not None:
        q, k, v, mask, causal = _joined(extra, q, k, v, mask, causal)
    if soft_cap is not None or sinks is not None:
        if backend not in ("auto", "math"):
            raise _unable(
                backend, "takes neither a soft cap on the scores nor sinks, as this model has", "auto or math"
            )
        y = _scored(q, k, v, mask, causal, scale, dropout, soft_cap, sinks)
        return y[..., y.shape[-2] - queries :, :]
    grouped = q.ndim == 4 and k.shape[1] != q.shape[1]
    if grouped and backend in UNGROUPED:
        k, v, grouped = (*(repeated(x, q.shape[1]) for x in (k, v)), False)
    check(backend, q, mask, dropout)
    how: dict[str, Any] = {"attn_mask": mask, "dropout_p": dropout, "is_causal": causal, "scale": scale}
    if backend == "xformers":
        y = _xformers(q, k, v, mask, dropout, causal, scale)
    elif backend in KERNELS:
        y = _one_kernel(backend, q, k, v, enable_gqa=grouped, **how)
    else:
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, **how)
    return y[..., y.shape[-2] - queries :, :]


def scored_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """``scaled_dot_product_attention`` with a soft cap and sinks; modes of torch functions see the call, as of that."""
    if has_torch_function((query,)):
        options = (attn_mask, dropout_p, is_causal, scale)
        how: dict[str, Any] = {"soft_cap": soft_cap, "sinks": sinks}
        y: Tensor = handle_torch_function(scored_attention, (query,), query, key, value, *options, **how)
        return y
    return _scored(query, key, value, attn_mask, is_causal, scale, dropout_p, soft_cap, sinks)


def _scored(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None,
    dropout: float,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Compute attention as its formula says, softmax in float32 at least."""
    k, v = (repeated(x, q.shape[1]) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if soft_cap is None else soft_cap * torch.tanh(scores / soft_cap)
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(1, -1, 1, 1).to(scores).expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    weights = weights if sinks is None else weights[..., :-1]
    return F.dropout(weights, dropout) @ v


def check(backend: str, q: Tensor, mask: Tensor | None, dropout: float) -> None:
    """Raise a ValueError that says why a backend can't compute this, and what to choose."""
    device, width = q.device.type, q.shape[-1]
    if backend in ("mem_efficient", "cudnn", "xformers") and device != "cuda":
        raise _unable(backend, f"needs a GPU, and this is on {device!r}", "sdpa, math or flash")
    if backend == "flash" and device == "cuda" and mask is not None:
        raise _unable(backend, "takes no mask on a GPU", "sdpa, mem_efficient, cudnn or xformers")
    if backend in ("flash", "cudnn") and device == "cuda" and q.dtype not in HALF:
        raise _unable(backend, f"computes float16 and bfloat16 on a GPU, not {q.dtype}", "mem_efficient or sdpa")
    if backend == "flash" and width > 256:
        raise _unable(backend, f"takes heads of at most 256 features, not {width}", "mem_efficient or sdpa")
    if backend == "flash" and device == "cpu" and dropout:
        raise _unable(backend, f"has no dropout on a CPU, and this is {dropout}", "sdpa or math")


def check_name(backend: str) -> None:
    """Raise a ValueError for a backend that there is not, an ImportError for one that is not installed."""
    if backend not in get_args(Backend):
        raise ValueError(f"attention: no backend {backend!r}{nearest(backend, get_args(Backend))}")
    if backend == "xformers":
        require("xformers", "mmpeft[xformers]")


def repeated(x: Tensor, heads: int) -> Tensor:
    """Return x (batch, key heads, tokens, width) with every head as often as there are heads of queries for it."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _unable(backend: str, reason: str, instead: str) -> ValueError:
    return ValueError(f"attention: {backend!r} {reason}: choose {instead}")


def _one_kernel(backend: str, q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    try:
        with sdpa_kernel(KERNELS[backend]):
            return F.scaled_dot_product_attention(q, k, v, **how)
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        what = f"q {tuple(q.shape)} and k {tuple(k.shape)} of {q.dtype} on {q.device.type!r}"
        masked = "no mask" if how["attn_mask"] is None else "a mask"
        reason = f"can't compute {what} with {masked} and dropout {how['dropout_p']} (torch's warnings say why)"
        raise _unable(backend, reason, "sdpa") from error


def _xformers(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, causal: bool, scale: float | None
) -> Tensor:
    require("xformers", "mmpeft[xformers]")
    ops = import_module("xformers.ops")
    bias = ops.LowerTriangularMask() if causal else None if mask is None else _aligned(mask, q, k)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    y: Tensor = ops.memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout, scale=scale)
    return y.transpose(1, 2)


def _aligned(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """Return a mask that is added, in rows whose memory starts at multiples of 8 numbers, as xformers wants them."""
    tokens = k.shape[-2]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    room = q.new_zeros(*q.shape[:-1], tokens + -tokens % 8)[..., :tokens]
    return room.copy_(mask)


def _joined(
    extra: Extra, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, bool]:
    """Put extra keys and values in front; a causal attention stays one by as many idle queries in front."""
    count, length = extra.keys.shape[-2], k.shape[-2]
    for what, mine, theirs in (("keys", extra.keys, k), ("values", extra.values, v)):
        if mine.shape[-1] != theirs.shape[-1] or theirs.shape[1] % mine.shape[1]:
            raise ValueError(f"attention: extra {what} {tuple(mine.shape)} don't fit {what} {tuple(theirs.shape)}")
    if causal and extra.shown is not None:
        mask, causal = torch.ones(q.shape[-2], length, dtype=torch.bool, device=q.device).tril(), False
    mask = _widened(mask, extra, length)
    q = F.pad(q, (0, 0, count, 0)) if causal else q
    k, v = (
        torch.cat([repeated(new.to(old.dtype), old.shape[1]).expand(len(old), -1, -1, -1), old], 2)
        for new, old in ((extra.keys, k), (extra.values, v))
    )
    return q, k, v, mask, causal


def _widened(mask: Tensor | None, extra: Extra, length: int) -> Tensor | None:
    """Return the mask (..., queries, keys) of the extra keys and the ``length`` ones of the model."""
    if mask is None and extra.shown is None:
        return None
    count, device = extra.keys.shape[-2], extra.keys.device
    front = torch.ones(1, count, dtype=torch.bool, device=device) if extra.shown is None else extra.shown
    front = front[:, None, None]
    rest = torch.ones(length, dtype=torch.bool, device=device) if mask is None else mask
    if rest.dtype != torch.bool:
        front = torch.zeros_like(front, dtype=rest.dtype).masked_fill_(~front, float("-inf"))
    rest = rest.view(*(1,) * (4 - rest.ndim), *rest.shape)
    shape = torch.broadcast_shapes(front.shape[:-1], rest.shape[:-1])
    return torch.cat([front.expand(*shape, count), rest.expand(*shape, length)], -1)
