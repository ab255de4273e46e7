"""Settings of PPO. Needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from mmpeft.settings import Settings

POLICY, VALUE, REWARD = "policy", "value", "reward"
"""The adapters of one backbone: what writes, what foresees rewards, and what gives them."""
Share = Annotated[float, Field(ge=0, le=1)]


class PPOSettings(Settings):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) of what a language model writes."""

    epochs: PositiveInt = 4
    """Passes over what was written for a batch of prompts."""
    minibatch: PositiveInt | None = None
    """Answers per optimizer step; null takes those of the whole batch."""
    kl: NonNegativeFloat = 0.05
    """What a nat of divergence from the reference costs."""
    estimator: Literal["k1", "k3"] = "k1"
    """The divergence at a token: ``log p - log r`` (k1), or ``r / p - 1 - log(r / p)``, never negative (k3)."""
    clip: PositiveFloat = 0.2
    """How far the ratio of probabilities counts."""
    value_clip: PositiveFloat = 0.2
    """How far a value may move from the one before."""
    value_weight: NonNegativeFloat = 0.1
    """Weight of the value function's loss."""
    discount: Share = 1.0
    """Factor on what comes a token later (gamma)."""
    smoothing: Share = 0.95
    """Lambda of the advantages (GAE, Schulman et al. 2016, arXiv:1506.02438)."""
    whiten_rewards: bool = False
    """Whether the tokens' rewards are divided by their standard deviation over the batch, as an option of TRL does."""
    value_past_end: bool = False
    """Whether an answer's reward is given, and its value learned, one token behind its last one, where there is room
    for it: the second mask of TRL's PPO (``padding_mask_p1``)."""
    missing_end: NonNegativeFloat = 1.0
    """What an answer costs that does not end within ``writing.max_new_tokens``."""
