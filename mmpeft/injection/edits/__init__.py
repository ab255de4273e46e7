"""The kinds of edit; each module knows a formula, and neither a method nor a library."""

from mmpeft.injection.edits.adapted_input import AdaptedInput
from mmpeft.injection.edits.base import Binding, Edit
from mmpeft.injection.edits.bottleneck import Bottleneck
from mmpeft.injection.edits.bypass import BypassLayer
from mmpeft.injection.edits.convolution import ConvolutionalBottleneck
from mmpeft.injection.edits.factor import FactorDelta, SharedFactors
from mmpeft.injection.edits.low_rank import DecomposedLowRank, LowRank
from mmpeft.injection.edits.scale import Affine, Scale
from mmpeft.injection.edits.side import SideNetwork
from mmpeft.injection.edits.tokens import Tokens
from mmpeft.injection.edits.unfreeze import NormalisedHead, Unfreeze

__all__ = [
    "AdaptedInput",
    "Affine",
    "Binding",
    "Bottleneck",
    "BypassLayer",
    "ConvolutionalBottleneck",
    "DecomposedLowRank",
    "Edit",
    "FactorDelta",
    "LowRank",
    "NormalisedHead",
    "Scale",
    "SharedFactors",
    "SideNetwork",
    "Tokens",
    "Unfreeze",
]
