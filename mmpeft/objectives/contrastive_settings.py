"""The choices of the contrastive losses. Needs no torch."""

from __future__ import annotations

from typing import Literal

LossName = Literal["clip", "siglip"]
"""The cross entropy over the batch (CLIP), or one decision for every pair (SigLIP)."""
