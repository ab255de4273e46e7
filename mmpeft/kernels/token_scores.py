"""Log-probabilities of given tokens without the logits of all positions: the head a few rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmpeft.kernels.plain import computed_in, is_plain

CHUNK_BYTES = 2**27
"""Of the logits (fp32) that exist at one time."""
SMALL_BYTES = 2**22
"""Logits of so many bytes (fp32) are not worth cutting up."""


def token_scores(head: nn.Module, hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log softmax(head(hidden))[tokens]`` in fp32, and whether the token is the likeliest; both (n,).

    ``hidden`` is (n, width), ``tokens`` (n,). The logits of at most ``CHUNK_BYTES`` exist at one time, forwards and
    backwards. A plain, frozen linear head computes its gradient on the way: for a scalar that is summed up from
    log-probabilities, ``d log p_i / d h_i = W[t_i] - p_i W`` depends on nothing that comes later. Any other head (with
    adapters, trained, quantised) is run again in the backward pass.
    """
    weight = getattr(head, "weight", None)
    if type(head) is nn.Linear and is_plain(weight) and not any(p.requires_grad for p in head.parameters()):
        return frozen_scores(hidden.to(computed_in(hidden)), weight, head.bias, tokens)
    return recomputed_scores(head, hidden, tokens, _outputs(head, hidden))


def frozen_scores(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `token_scores` does, for logits ``hidden weight^T + bias`` in hidden's precision.

    There is no gradient to the weight, and none of second order.
    """
    return _LinearScores.apply(hidden, weight, bias, tokens, _rows(len(hidden), len(weight)))


def recomputed_scores(
    head: Callable[[Tensor], Tensor], hidden: Tensor, tokens: Tensor, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """Return what `token_scores` does, for any ``head``: a few rows at a time, and again in the backward pass."""
    size = _rows(len(hidden), vocabulary)
    parts = [_again(head, *part) for part in zip(hidden.split(size), tokens.split(size), strict=True)]
    scores, right = zip(*parts, strict=True) if parts else ((), ())
    return torch.cat(scores), torch.cat(right)


def scores_of(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of tokens by their logits (n, vocabulary), and whether each is the likeliest."""
    logits = logits.float() if logits.dtype != torch.float64 else logits
    return -nn.functional.cross_entropy(logits, tokens, reduction="none"), logits.detach().argmax(-1) == tokens


def _again(head: Callable[[Tensor], Tensor], hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    def run(rows: Tensor) -> tuple[Tensor, Tensor]:
        return scores_of(head(rows), tokens)

    return checkpoint(run, hidden, use_reentrant=False)


def _outputs(head: nn.Module, hidden: Tensor) -> int:
    with torch.no_grad():
        return int(head(hidden[:1] if len(hidden) else hidden.new_zeros(1, hidden.shape[-1])).shape[-1])


def _rows(count: int, vocabulary: int) -> int:
    """Return how many rows are computed at a time: an eighth of all, within the limits of bytes."""
    chunk = min(max(count * vocabulary // 2, SMALL_BYTES), CHUNK_BYTES)
    return max(1, chunk // (4 * vocabulary))


class _LinearScores(torch.autograd.Function):
    """Scores and, if they are wanted, the gradient of each to its row of ``hidden``."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, rows: int
    ) -> tuple[Tensor, Tensor]:
        weight = weight.to(hidden.dtype)
        scores = torch.empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        right = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            logits = nn.functional.linear(hidden[part], weight, None if bias is None else bias.to(hidden.dtype))
            logits = logits.to(scores.dtype)
            right[part] = logits.argmax(-1) == tokens[part]
            logits = logits.log_softmax(-1)
            scores[part] = logits.gather(-1, tokens[part, None])[:, 0]
            if slopes is not None:
                torch.sub(weight[tokens[part]], logits.exp_().to(weight.dtype) @ weight, out=slopes[part])
        if slopes is not None:
            ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(right)
        return scores, right

    @staticmethod
    @once_differentiable  # the slopes that are kept say nothing of second derivatives
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return grads[0][:, None].to(slopes.dtype) * slopes, None, None, None, None
