"""What a layer computes: which modules are `W x + b`, which are a plain convolution, and why others are neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from mmpeft.anatomies.hosts import plain_class
from mmpeft.kernels.private_names import packs_projections

LINEAR = frozenset(
    (
        "torch.nn.modules.linear.Linear.forward",
        "timm.layers.linear.Linear.forward",
        "transformers.models.falcon.modeling_falcon.FalconLinear.forward",
    )
)
"""Forwards that are ``W x + b`` with W (out, in) and b as the module holds them."""
FOUR_BITS = frozenset(("bitsandbytes.nn.modules.Linear4bit.forward",))
"""Forwards of ``W x + b`` with a W of 4 bits, which `kernels.quantized` reads."""
PACKED = FOUR_BITS.union(
    (
        "bitsandbytes.nn.modules.Linear8bitLt.forward",
        "transformers.integrations.finegrained_fp8.FP8Linear.forward",
        "transformers.integrations.fbgemm_fp8.FbgemmFp8Linear.forward",
        "transformers.integrations.compressed_tensors.CompressedTensorsFP8Linear.forward",
        "diffusers.quantizers.gguf.utils.GGUFLinear.forward",
    )
)
"""Forwards of ``W x + b`` with a W that is stored in other numbers."""
TRANSPOSED = frozenset(("transformers.pytorch_utils.Conv1D.forward",))
"""Forwards of ``W x + b`` whose W lies (in, out)."""
CONVOLUTION = frozenset(("torch.nn.modules.conv.Conv2d.forward",))
"""Forwards that convolve images with the weight as the module holds it."""
READ_ONLY = nn.modules.linear.NonDynamicallyQuantizableLinear
"""The output projection of ``nn.MultiheadAttention``: it is read and never called."""


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module computes ``W x + b`` when it is called, with W (out, in) among its parameters."""
    known = module is not None and _forward(module) in LINEAR | PACKED and not isinstance(module, READ_ONLY)
    return known and module is not None and owns_weight(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether a module computes ``W x + b`` with W stored (in, out), as GPT-2's do."""
    return _forward(module) in TRANSPOSED and owns_weight(module)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution of images without groups, whose weight a low-rank delta is a delta of."""
    plain = _forward(module) in CONVOLUTION and _qualified(module, "_conv_forward").startswith("torch.nn.modules.conv.")
    return plain and owns_weight(module) and bool(module.groups == 1)


def is_multihead(module: nn.Module) -> bool:
    """Whether a module is torch's multi-head attention with one weight for q, k and v, of which carriers know all."""
    return isinstance(module, nn.MultiheadAttention) and not _unknown(module)


def _unknown(attention: nn.MultiheadAttention) -> str:
    if _forward(attention) != "torch.nn.modules.activation.MultiheadAttention.forward":
        return f"{plain_class(attention).__name__} computes something else than nn.MultiheadAttention"
    if attention.bias_k is not None or attention.add_zero_attn or not packs_projections(attention):
        return "nn.MultiheadAttention with bias_k, add_zero_attn or another kdim or vdim can't carry edits"
    made = attention._parameters.get("in_proj_weight") is None or not owns_weight(attention.out_proj)
    return "the weights of this nn.MultiheadAttention are made of others at each call" if made else ""


def owns_weight(module: nn.Module) -> bool:
    """Whether the weight is a parameter itself, not made of others at each call (parametrised, normed, pruned)."""
    return module._parameters.get("weight") is not None


def unfit(module: nn.Module) -> str:
    """Return why a layer with a weight is no place for an edit of that weight; empty where it is one, or has none."""
    kind = plain_class(module)
    if isinstance(module, nn.MultiheadAttention):
        return _unknown(module)
    if isinstance(module, READ_ONLY) or not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        return ""
    if not owns_weight(module):
        return (
            f"the weight of this {kind.__name__} is made of others at each call (a parametrisation): remove that first"
        )
    if is_linear(module) or is_convolution(module):
        return ""
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups != 1:
        return f"this {kind.__name__} has {module.groups} groups, and a low-rank delta is of a convolution without"
    plain = "W x + b" if isinstance(module, nn.Linear) else "a plain convolution of images"
    return (
        f"{kind.__name__} computes something else than {plain} ({_forward(module)}): an edit of its weight has no place"
    )


def name_of(forward: Callable[..., Any]) -> str:
    """Return the name by which a class's forward is known here."""
    return f"{forward.__module__}.{forward.__qualname__}"


def _forward(module: nn.Module) -> str:
    return _qualified(module, "forward")


def _qualified(module: nn.Module, method: str) -> str:
    function: Callable[..., Any] | None = getattr(plain_class(module), method, None)
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
