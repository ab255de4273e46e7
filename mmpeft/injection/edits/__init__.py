"""The kinds of edit; each module knows a formula, and neither a method nor a library."""

from mmpeft.injection.edits.base import Binding, Edit
from mmpeft.injection.edits.bottleneck import Bottleneck
from mmpeft.injection.edits.low_rank import DecomposedLowRank, LowRank
from mmpeft.injection.edits.scale import Affine, Scale
from mmpeft.injection.edits.tokens import Tokens
from mmpeft.injection.edits.unfreeze import Unfreeze

__all__ = ["Affine", "Binding", "Bottleneck", "DecomposedLowRank", "Edit", "LowRank", "Scale", "Tokens", "Unfreeze"]
