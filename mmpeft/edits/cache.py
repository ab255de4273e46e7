"""A cache of the features of labelled samples, beside a classifier (Tip-Adapter)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.sites import LogitsSite
from mmpeft.edits.base import Call, ChangesOutput


class FeatureCache(ChangesOutput):
    """``logits + alpha exp(-beta (1 - f K^T)) V`` of the normalised features f (Zhang et al. 2022, arXiv:2207.09519).

    Keys K (samples, width) are the normalised features of labelled samples, values V (samples, classes) their one-hot
    labels; both start at zero, which changes nothing, until ``fill``. ``alpha`` and ``beta`` hold one number each.
    With ``trained`` the keys are parameters (Tip-Adapter-F).
    """

    keys: Tensor
    values: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, site: LogitsSite, *, samples: int, alpha: float, beta: float, trained: bool) -> None:
        super().__init__()
        keys = torch.zeros(samples, site.width)
        if trained:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("values", torch.zeros(samples, site.classes))
        self.register_buffer("alpha", torch.tensor(float(alpha), dtype=torch.float64))
        self.register_buffer("beta", torch.tensor(float(beta), dtype=torch.float64))

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Take features (n, width), normalised here, and labels (n,) of at most as many samples as there are places."""
        places, classes = self.values.shape
        if len(features) > places:
            raise ValueError(f"shots: a cache of {places} samples can't take {len(features)}")
        self.keys.zero_()
        self.values.zero_()
        self.keys[: len(features)] = F.normalize(features.to(self.keys), dim=-1)
        self.values[: len(features)] = F.one_hot(labels, classes).to(self.values)

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Add what the cache says of the features."""
        affinity = F.normalize(x, dim=-1) @ self.keys.to(x.dtype).T
        votes = (self.beta * (affinity - 1)).exp().to(y.dtype) @ self.values.to(y.dtype)
        return y + self.alpha.to(y.dtype) * votes

    def extra_repr(self) -> str:
        """Samples and classes."""
        return f"{self.values.shape[0]} samples, {self.values.shape[1]} classes"
