"""Models that torch.compile has compiled."""

from __future__ import annotations

import torch

from mmpeft.kernels.private_names import has_compiled


def reset_compiled() -> None:
    """Let go of compiled models: the calls that they were compiled with have changed."""
    if has_compiled():
        torch._dynamo.reset()
