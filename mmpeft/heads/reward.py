"""A language model that gives a sequence a number: a new layer on its last hidden states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.heads.base import Headed
from mmpeft.injection.anatomy import Anatomy


def without_own_head(anatomy: Anatomy) -> Anatomy:
    """Return an anatomy whose only head is the task's."""
    towers = (
        replace(tower, sites=tuple(site for site in tower.sites if site.name != "head" or tower.name == "task"))
        for tower in anatomy.towers
    )
    return replace(anatomy, towers=tuple(towers))


class ScalarScorer(Headed):
    """Token ids (batch, length) to a number for each row, read at its last token: a reward.

    ``values`` gives the number at every token, as a value function does. The new layer starts at random, with the
    standard deviation ``1 / sqrt(width + 1)`` (Huang et al. 2024, arXiv:2403.17031), in single precision. The model's
    own output layer, which is of no use here, is taken away unless the backbone is ``shared`` with a policy.
    """

    def __init__(self, backbone: Any, *, shared: bool = False) -> None:
        super().__init__()
        width = int(backbone.config.get_text_config().hidden_size)
        self.backbone, self.head = backbone, nn.Linear(width, 1)
        if not shared:
            backbone.set_output_embeddings(nn.Identity())
        nn.init.normal_(self.head.weight, std=(width + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the score of each row (batch,)."""
        places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        last = (attention_mask * places).argmax(1)
        return self.values(input_ids, attention_mask).gather(1, last[:, None])[:, 0]

    def complete(self, anatomy: Anatomy) -> Anatomy:
        """Return the anatomy with the new layer as the only head."""
        return without_own_head(super().complete(anatomy))

    def values(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return a number for each token (batch, length)."""
        found = self.backbone.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        return self.head(found.last_hidden_state.to(self.head.weight.dtype))[..., 0].float()
