"""A language model that gives a sequence a number: a new layer on its last hidden states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.anatomies.anatomy import Anatomy
from mmpeft.anatomies.headed import Headed


def without_own_head(anatomy: Anatomy) -> Anatomy:
    """Return an anatomy whose only head is the task's."""
    towers = (
        replace(tower, sites=tuple(site for site in tower.sites if site.name != "head" or tower.name == "task"))
        for tower in anatomy.towers
    )
    return replace(anatomy, towers=tuple(towers))


def scalar_layer(backbone: Any) -> nn.Linear:
    """Return a layer of one output for a model's hidden states, random with the deviation ``1 / sqrt(width + 1)``.

    Huang et al. 2024, arXiv:2403.17031.
    """
    width = int(backbone.config.get_text_config().hidden_size)
    layer = nn.Linear(width, 1)
    nn.init.normal_(layer.weight, std=(width + 1) ** -0.5)
    nn.init.zeros_(layer.bias)
    return layer


def token_values(model: Headed, input_ids: Tensor, attention_mask: Tensor, **options: Tensor) -> Tensor:
    """Return what a model's head of one output makes of every token's last hidden state, (batch, length)."""
    output = model.backbone.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **options)
    numbers: Tensor = model.head(output.last_hidden_state.to(next(model.head.parameters()).dtype))
    return numbers[..., 0].to(torch.promote_types(numbers.dtype, torch.float32))


def at_last_token(numbers: Tensor, attention_mask: Tensor) -> Tensor:
    """Return each row's number (batch,) at its last token."""
    places = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return numbers.gather(1, (attention_mask * places).argmax(1)[:, None])[:, 0]


class ScalarScorer(Headed):
    """Token ids (batch, length) to a number for each row, read at its last token: a reward.

    The new layer (`scalar_layer`) has single precision. The model's own output layer, which is of no use here, is taken
    away.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone, self.head = backbone, scalar_layer(backbone)
        backbone.set_output_embeddings(nn.Identity())

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the score of each row (batch,)."""
        return at_last_token(self.values(input_ids, attention_mask), attention_mask)

    def complete(self, anatomy: Anatomy) -> Anatomy:
        """Return the anatomy with the new layer as the only head."""
        return without_own_head(super().complete(anatomy))

    def values(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return a number for each token (batch, length), as a value function does."""
        return token_values(self, input_ids, attention_mask)
