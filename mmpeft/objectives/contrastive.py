"""Contrastive learning of pictures and words: the losses of CLIP and SigLIP, and recall@k of retrieval."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, normalize

from mmpeft.objectives.base import Batch, Objective, at_least_single
from mmpeft.objectives.contrastive_settings import LossName
from mmpeft.objectives.gathering import gather_rows
from mmpeft.objectives.recall import RECALLS, recall_scores


class Contrastive(Objective):
    """Tells each picture's caption from the others of the batch, and each caption's picture, over all processes.

    ``model(image, text)`` returns features x and y, (batch, width), a scale t and a bias b or None. With unit vectors
    and the logits ``z_ij = t x_i . y_j + b`` over all pairs of the batch,

    - ``clip`` (Radford et al. 2021, arXiv:2103.00020):
      ``L = -1/2 sum_i [log softmax_j(z_ij) + log softmax_j(z_ji)]`` at j = i;
    - ``siglip`` (Zhai et al. 2023, arXiv:2303.15343): ``L = -sum_ij log sigmoid(s_ij z_ij)``, with s = 1 where
      i = j and -1 elsewhere.

    Captions of the same tokens are no negatives of each other: ``clip`` spreads its target evenly over them, ``siglip``
    has s = 1. Without such captions the losses are the published ones, to the letter.

    The sum runs over the pairs of this process, against those of all, so several processes have the gradient of one
    with the big batch. Accumulation over passes does not: each pass has only its own negatives.
    Scores: those of `recall_scores`.
    """

    score_names = RECALLS

    def __init__(self, loss: LossName = "clip") -> None:
        super().__init__()
        self.kind = loss
        self.parts: list[dict[str, Tensor]] = []

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of this process's pairs, and how many pictures are most like their own caption."""
        image, text, scale, bias = model(batch["image"], batch["text"][:, 0])
        counted = len(image) if batch["counted"] else 0
        with torch.autocast(image.device.type, enabled=False):  # differences of cosines drown in half precision
            pairs = torch.cat([unit(image), unit(text)], -1)[:counted]
            everyone, start = gather_rows(pairs)
            (x, y), (every_x, every_y) = pairs.chunk(2, -1), everyone.chunk(2, -1)
            logits = at_least_single(scale) * torch.stack([x @ every_y.T, y @ every_x.T])
            tokens, _ = gather_rows(batch["text"][:counted, 0])
            same = (tokens[start : start + counted, None] == tokens[None]).all(-1)
            total = clip_loss(logits, same) if self.kind == "clip" else siglip_loss(logits[0], same, bias)
        partners = torch.arange(start, start + counted, device=logits.device)
        return total, {"batch_accuracy": (logits[0].detach().argmax(-1) == partners).sum()}

    def idle(self, model: nn.Module, batch: Batch) -> None:
        """Pass the batch through the model, and gather nothing: in an evaluation the others don't either."""
        model(batch["image"], batch["text"][:, 0])

    def update(self, model: nn.Module, batch: Batch) -> None:
        """Keep the features of a batch of pictures and all their captions."""
        valid = torch.arange(batch["text"].shape[1], device=batch["text"].device) < batch["captions"][:, None]
        owner, tokens = valid.nonzero()[:, 0], batch["text"][valid]
        image, text, *_ = model(batch["image"], tokens)
        part = {"image": unit(image), "text": unit(text), "owner": owner, "tokens": tokens}
        self.parts.append({name: value.cpu() for name, value in part.items()})

    def compute(self) -> dict[str, float]:
        """Return the recalls over everything that all processes kept."""
        parts: list[dict[str, Any]] = gather_object(self.parts)
        self.parts = []
        first = 0
        for part in parts:
            part["owner"] = part["owner"] + first
            first += len(part["image"])
        return recall_scores(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def unit(features: Tensor) -> Tensor:
    """Return the features with length one, in fp32 at least."""
    return normalize(at_least_single(features), dim=-1)


def clip_loss(logits: Tensor, same: Tensor) -> Tensor:
    """Return the sum of both cross entropies, halved; logits are (2, own pairs, all pairs), ``same`` marks targets."""
    target = same / same.sum(-1, keepdim=True)
    return -(logits.log_softmax(-1) * target).sum() / 2


def siglip_loss(logits: Tensor, same: Tensor, bias: Tensor | None) -> Tensor:
    """Return the summed sigmoid loss of all pairs of own pictures and all captions.

    Raises:
        ValueError: If the model has no bias: without one all negatives begin at probability one half.
    """
    if bias is None:
        raise ValueError(
            "loss: 'siglip' needs a model with a logit bias, as SigLIP has, and this one has none: use clip"
        )
    signs = same.to(logits.dtype) * 2 - 1
    return -logsigmoid(signs * (logits + at_least_single(bias))).sum()
