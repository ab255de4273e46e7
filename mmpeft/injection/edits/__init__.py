"""The kinds of edit; each module knows a formula, and neither a method nor a library."""

from mmpeft.injection.edits.adapted_input import AdaptedInput
from mmpeft.injection.edits.base import Binding, Edit
from mmpeft.injection.edits.bottleneck import Bottleneck
from mmpeft.injection.edits.bypass import BypassLayer
from mmpeft.injection.edits.cache import FeatureCache
from mmpeft.injection.edits.control import ControlBranch, ControlImage
from mmpeft.injection.edits.convolution import ConvolutionalBottleneck
from mmpeft.injection.edits.decoupled import DecoupledAttention
from mmpeft.injection.edits.factor import FactorDelta, SharedFactors
from mmpeft.injection.edits.feature import FeatureBlend
from mmpeft.injection.edits.feature_maps import FeatureMaps
from mmpeft.injection.edits.fusion import Fusion
from mmpeft.injection.edits.gate import Gate
from mmpeft.injection.edits.image_tokens import ImagePrompt, ImageTokens, Resampler
from mmpeft.injection.edits.ladder import Ladder
from mmpeft.injection.edits.linear_bottleneck import LinearBottleneck
from mmpeft.injection.edits.low_rank import DecomposedLowRank, LowRank
from mmpeft.injection.edits.low_rank_convolution import ConvDecomposedLowRank, ConvLowRank
from mmpeft.injection.edits.new_words import NewWords
from mmpeft.injection.edits.prefix import Prefix, PrefixNetwork, ShiftedPositions
from mmpeft.injection.edits.prompt import ConditionalPrompt, Prompt
from mmpeft.injection.edits.scale import Affine, Scale
from mmpeft.injection.edits.side import SideNetwork
from mmpeft.injection.edits.soft_prompt import EncodedPrompt, SoftPrompt
from mmpeft.injection.edits.tokens import CoupledTokens, Tokens
from mmpeft.injection.edits.unfreeze import NormalisedHead, Unfreeze

__all__ = [
    "AdaptedInput",
    "Affine",
    "Binding",
    "Bottleneck",
    "BypassLayer",
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
    "NewWords",
    "NormalisedHead",
    "Prefix",
    "PrefixNetwork",
    "Prompt",
    "Resampler",
    "Scale",
    "SharedFactors",
    "ShiftedPositions",
    "SideNetwork",
    "SoftPrompt",
    "Tokens",
    "Unfreeze",
]
