"""A language model that writes, and a number for each of its tokens: policy, value and reward on one backbone."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmpeft.anatomies.anatomy import Anatomy
from mmpeft.heads.reward import scalar_layer, token_values, without_own_head
from mmpeft.heads.token_probabilities import TokenScorer


class ActorCritic(TokenScorer):
    """Log-probabilities of tokens by the model's own output layer, and numbers by a new layer of one output.

    Which adapters are active says who speaks: the policy, the value function, a reward model, or the reference (none).
    The new layer is a copy of its own in every adapter that trains it.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        self.head = scalar_layer(backbone)

    def complete(self, anatomy: Anatomy) -> Anatomy:
        """Return the anatomy with the new layer as the only head."""
        return without_own_head(super().complete(anatomy))

    def values(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Return a number for each token (batch, length)."""
        return token_values(self, input_ids, attention_mask, position_ids=position_ids)
