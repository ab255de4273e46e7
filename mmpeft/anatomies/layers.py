"""What a layer computes: which modules are `W x + b`, which are a plain convolution, and why others are neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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


def unfit_to_scale(module: nn.Module, axis: int) -> str:
    """Return why a layer with weight 2 w and bias 1 isn't twice the layer with w and 0, plus one; empty where it is.

    Normalisations read a weight in many ways: Nemotron's scales by 1 + w, ConvNeXt v2's adds its input to what it
    scaled. So the layer is tried with random w, on a copy; ``axis`` is that of the channels in its input.
    """
    kind = plain_class(module).__name__
    width = int(module.weight.numel())  # type: ignore[operator]
    shapes = [(2, 3, 3, width)] if axis == -1 else [(2, width, *[4] * n) for n in (2, 1, 3)]
    if isinstance(module, nn.modules.conv._ConvNd):
        shapes = [(2, module.in_channels, *module.kernel_size)]
    for shape in shapes:
        try:
            once, twice = _tried(module, shape, 0), _tried(module, shape, 1)
        except (RuntimeError, ValueError, TypeError, AssertionError):
            continue
        near = torch.allclose(twice.float(), 2 * once.float() + 1, rtol=0.02, atol=0.1)
        return "" if near else f"{kind} does more than scale by its weight and add its bias, so neither can be changed"
    return f"{kind} can't be tried, so whether a scale and a shift can be written into its weight is not known"


def _tried(module: nn.Module, shape: tuple[int, ...], more: int) -> Tensor:
    """Run a copy of the layer, as its library wrote it, on random numbers: weight w and bias 0, or 2 w and 1."""
    kind: Any = plain_class(module)
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, generator=generator).to(weight) for size in (shape, weight.shape))
    changed = {"weight": w * (1 + more)} | ({} if bias is None else {"bias": torch.full_like(bias, more)})
    copy = kind.__new__(kind)
    copy.__dict__ = {**vars(module), "training": False, "_parameters": {**module._parameters, **changed}}
    with torch.no_grad():
        made: Tensor = kind.forward(copy, x)
    return made if bias is not None else made + more


def name_of(forward: Callable[..., Any]) -> str:
    """Return the name by which a class's forward is known here."""
    return f"{forward.__module__}.{forward.__qualname__}"


def _forward(module: nn.Module) -> str:
    return _qualified(module, "forward")


def _qualified(module: nn.Module, method: str) -> str:
    function: Callable[..., Any] | None = getattr(plain_class(module), method, None)
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
