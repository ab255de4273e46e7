"""The kinds of edit; each module knows a formula, and neither a method nor a library."""

from mmpeft.edits.adapted_input import AdaptedInput
from mmpeft.edits.base import (
    AddsKeys,
    Binding,
    Call,
    ChangesInput,
    ChangesOutput,
    Edit,
    Merges,
    Point,
    ReplacesParameters,
)
from mmpeft.edits.bottleneck import Bottleneck
from mmpeft.edits.bypass import BypassLayer
from mmpeft.edits.cache import FeatureCache
from mmpeft.edits.control import ControlBranch, ControlImage
from mmpeft.edits.convolution import ConvolutionalBottleneck
from mmpeft.edits.decoupled import DecoupledAttention
from mmpeft.edits.factor import FactorDelta, SharedFactors
from mmpeft.edits.feature import FeatureBlend
from mmpeft.edits.feature_maps import FeatureMaps
from mmpeft.edits.fusion import Fusion
from mmpeft.edits.gate import Gate
from mmpeft.edits.image_tokens import ImagePrompt, ImageTokens, Resampler
from mmpeft.edits.ladder import Ladder
from mmpeft.edits.linear_bottleneck import LinearBottleneck
from mmpeft.edits.low_rank import DecomposedLowRank, LowRank
from mmpeft.edits.low_rank_convolution import ConvDecomposedLowRank, ConvLowRank
from mmpeft.edits.new_words import NewWords
from mmpeft.edits.prefix_tuning import Prefix, PrefixNetwork, ShiftedPositions
from mmpeft.edits.prompt import ConditionalPrompt, Prompt
from mmpeft.edits.references import Borrowed, Condition
from mmpeft.edits.scale import Affine, Scale
from mmpeft.edits.side import SideNetwork
from mmpeft.edits.soft_prompt import EncodedPrompt, SoftPrompt
from mmpeft.edits.tokens import CoupledTokens, Tokens
from mmpeft.edits.unfreeze import NormalisedHead, Unfreeze

__all__ = [
    "AdaptedInput",
    "AddsKeys",
    "Affine",
    "Binding",
    "Borrowed",
    "Bottleneck",
    "BypassLayer",
    "Call",
    "ChangesInput",
    "ChangesOutput",
    "Condition",
    "ConditionalPrompt",
    "ControlBranch",
    "ControlImage",
    "ConvDecomposedLowRank",
    "ConvLowRank",
    "ConvolutionalBottleneck",
    "CoupledTokens",
    "DecomposedLowRank",
    "DecoupledAttention",
    "Edit",
    "EncodedPrompt",
    "FactorDelta",
    "FeatureBlend",
    "FeatureCache",
    "FeatureMaps",
    "Fusion",
    "Gate",
    "ImagePrompt",
    "ImageTokens",
    "Ladder",
    "LinearBottleneck",
    "LowRank",
    "Merges",
    "NewWords",
    "NormalisedHead",
    "Point",
    "Prefix",
    "PrefixNetwork",
    "Prompt",
    "ReplacesParameters",
    "Resampler",
    "Scale",
    "SharedFactors",
    "ShiftedPositions",
    "SideNetwork",
    "SoftPrompt",
    "Tokens",
    "Unfreeze",
]
