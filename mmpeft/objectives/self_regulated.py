"""Classification that stays close to the frozen model: what PromptSRC minimises."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmpeft.handle.adapters import adapters
from mmpeft.heads.zero_shot import ZeroShotClassifier
from mmpeft.objectives.base import Batch, at_least_single
from mmpeft.objectives.classification import Classification


class SelfRegulated(Classification):
    """Cross entropy and three distances to the frozen model (Khattak et al. 2023, arXiv:2307.06948).

    ``L = CE + a mean|w - w_0| + b mean|v - v_0| + c KL(p_0 || p) / (samples classes)`` with normalised class embeddings
    w and image features v, and p the softmax of the logits; index 0 is the model without its adapters, on the same
    images. The frozen class embeddings are those of the classifier's templates; the paper takes sixty.
    """

    def __init__(self, label_smoothing: float, *, text: float, image: float, logits: float) -> None:
        super().__init__(label_smoothing)
        self.text, self.image, self.logits = text, image, logits

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the summed loss; as ``regulation`` what the distances add to it, and ``accuracy``."""
        inner = model.module if isinstance(model, DistributedDataParallel) else model
        assert isinstance(inner, ZeroShotClassifier)
        label, count = batch["label"], len(batch["label"])
        logits, features, weight = _watched(model, inner, batch["image"])
        with torch.no_grad(), adapters(inner).off():
            frozen, frozen_features, _ = _watched(inner, inner, batch["image"])
        divergence = F.kl_div(logits.log_softmax(-1), frozen.log_softmax(-1), reduction="sum", log_target=True)
        regulation = self.image * F.l1_loss(features, frozen_features) + self.logits * divergence / logits.numel()
        if weight is not None:
            regulation = regulation + self.text * F.l1_loss(weight, inner.head.weight.to(weight))
        loss = F.cross_entropy(logits, label, reduction="sum", label_smoothing=self.label_smoothing)
        correct = (logits.detach().argmax(-1) == label).sum()
        return loss + count * regulation, {"accuracy": correct, "regulation": count * regulation.detach()}


def _watched(model: nn.Module, inner: ZeroShotClassifier, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits, normalised image features and, if computed in this pass, normalised class embeddings."""
    seen: list[tuple[Any, ...]] = []
    hook = inner.head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    try:
        logits = at_least_single(model(images))
    finally:
        hook.remove()
    features, _, weight = seen[0]
    return logits, F.normalize(at_least_single(features), dim=-1), None if weight is None else at_least_single(weight)
