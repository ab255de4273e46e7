"""Recall@k of retrieval between pictures and captions."""

from __future__ import annotations

import torch
from torch import Tensor

DEPTHS = (1, 5, 10)
WAYS = ("image_to_text", "text_to_image")
RECALLS = ("mean_recall", *(f"{way}_recall_{depth}" for way in WAYS for depth in DEPTHS))
"""Names of the scores."""
CHUNK = 1024
"""Queries that are compared at a time."""


def recall_scores(image: Tensor, text: Tensor, owner: Tensor, tokens: Tensor) -> dict[str, float]:
    """Return ``mean_recall`` and recall@1, @5 and @10 of each direction, fractions of the queries.

    ``image`` is (images, width), ``text`` (captions, width), both of unit length; caption i, of these ``tokens``,
    belongs to image ``owner[i]``. A picture is found right if any caption of its own is among the first k captions, a
    caption if any picture that has it is among the first k pictures. Captions of the same tokens are one candidate,
    right for all their pictures; without such captions this is the protocol of Karpathy and Fei-Fei (2015,
    arXiv:1412.2306). Where a wrong candidate is exactly as similar as the right one, it counts as the nearer.
    """
    distinct, which = tokens.unique(dim=0, return_inverse=True)
    candidates = torch.zeros(len(distinct), text.shape[1], dtype=text.dtype).index_copy(0, which, text)
    relevant = torch.zeros(len(image), len(distinct), dtype=torch.bool)
    relevant[owner, which] = True
    ranks = {
        "image_to_text": _ranks(image, candidates, relevant),
        "text_to_image": _ranks(candidates, image, relevant.T)[which],
    }
    scores = {
        f"{name}_recall_{depth}": float((rank < depth).double().mean())
        for name, rank in ranks.items()
        for depth in DEPTHS
    }
    return {"mean_recall": sum(scores.values()) / len(scores), **scores}


def _ranks(queries: Tensor, candidates: Tensor, relevant: Tensor) -> Tensor:
    """Return for each query how many wrong candidates are at least as similar as its best right one."""
    ranks = []
    for start in range(0, len(queries), CHUNK):
        similarity, right = queries[start : start + CHUNK] @ candidates.T, relevant[start : start + CHUNK]
        best = similarity.masked_fill(~right, -torch.inf).amax(-1, keepdim=True)
        ranks.append(((similarity >= best) & ~right).sum(-1))
    return torch.cat(ranks)
