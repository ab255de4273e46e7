"""Custom Diffusion's concepts, trained apart: merged into one by constrained least squares, or compressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Concept = tuple[Mapping[str, Tensor], Tensor]
"""An adapter's tensors by key, and the features (tokens, context) of the texts that name its concept."""


def merge_concepts(base: Mapping[str, Tensor], concepts: Sequence[Concept], regular: Tensor) -> dict[str, Tensor]:
    """Return one adapter's tensors of several concepts; ``base`` are the frozen weights by the same keys.

    ``regular`` (tokens, context) are features of texts of all kinds, whose keys and values should change least.
    """
    return {
        key: merge_weights(weight, [(tensors[key], features) for tensors, features in concepts], regular)
        for key, weight in base.items()
    }


def merge_weights(base: Tensor, concepts: Sequence[tuple[Tensor, Tensor]], regular: Tensor) -> Tensor:
    """Return the W (out, in) nearest to ``base`` on ``regular`` features that agrees with each concept on its own.

    ``min |(W - W_0) R^T|`` with ``W C^T = V^T``: C (tokens, in) stacks the concepts' features, V what their own W_i
    make of them. ``W = W_0 + (V^T - W_0 C^T) (D C^T)^-1 D`` with ``D = C (R^T R)^-1``, in float64 (Kumari et al. 2023,
    arXiv:2212.04488). A feature that is there twice, as of words that texts begin with, counts for the first concept.
    """
    start, r = base.double(), regular.double()
    if torch.linalg.matrix_rank(r) < r.shape[1]:
        raise ValueError(f"regular: {len(r)} features span less than the text's {r.shape[1]} dimensions: give more")
    c = torch.cat([features.double() for _, features in concepts])
    v = torch.cat([features.double() @ weight.double().T for weight, features in concepts])
    first = [i for i, row in enumerate(c) if not (c[:i] == row).all(1).any()]
    c, v = c[first], v[first]
    if torch.linalg.matrix_rank(c) < len(c):
        raise ValueError(f"concepts: their {len(c)} features depend on each other: leave some out")
    d = torch.linalg.solve(r.T @ r, c.T).T
    change = (v.T - start @ c.T) @ torch.linalg.solve(d @ c.T, d)
    return (start + change).to(base.dtype)


def compress(delta: Tensor, share: float = 0.6) -> tuple[Tensor, Tensor]:
    """Return ``u`` (out, rank) and ``v`` (rank, in), whose product is the nearest to a delta at its rank.

    The rank is the least whose singular values sum up to more than ``share`` of all; the authors' code stops one short.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: {share}: between 0 and 1")
    u, s, v = torch.linalg.svd(delta.double(), full_matrices=False)
    rank = int((s.cumsum(0) <= share * s.sum()).sum()) + 1
    return (u[:, :rank] * s[:rank]).to(delta.dtype), v[:rank].to(delta.dtype)
