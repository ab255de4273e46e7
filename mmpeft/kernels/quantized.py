"""Weights of 4 or 8 bits: what they stand for, and their layer without them.

Layers of bitsandbytes and weights of torchao are told by what they carry; neither library is needed for this.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def is_quantized(weight: Tensor | None) -> bool:
    """Whether a weight is stored in other numbers than those it stands for."""
    return weight is not None and (_packed(weight) or _wrapped(weight))


def dense(weight: Tensor) -> Tensor:
    """Return the numbers (out, in) that a weight stands for, in its unquantised precision; a plain one is itself."""
    if _packed(weight):
        return _unpack(weight)
    return weight.dequantize().detach() if _wrapped(weight) else weight


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``x W^T + bias`` in x's precision, as the library of a quantised weight computes it."""
    bias = None if bias is None else bias.to(x.dtype)
    if _packed(weight):
        from bitsandbytes import matmul_4bit

        y: Tensor = matmul_4bit(x, weight, bias=bias, quant_state=_state(weight))
        return y
    return F.linear(x, weight if _wrapped(weight) else weight.to(x.dtype), bias)


def computes_in(host: nn.Module, weight: Tensor) -> torch.dtype | None:
    """Return the precision that a layer computes in with its quantised weight; None where ``dense`` can't read it."""
    if not _packed(weight):
        return weight.dtype
    if getattr(_state(weight), "packing_format_for_cpu", False):
        return None
    return getattr(host, "compute_dtype", None) or dtype_of(weight)


def shape_of(weight: Tensor) -> torch.Size:
    """Return the shape of the numbers that a weight stands for."""
    return torch.Size(_state(weight).shape) if _packed(weight) else weight.shape


def dtype_of(weight: Tensor) -> torch.dtype:
    """Return the unquantised precision of a weight: that of `dense`, without making its numbers."""
    return _state(weight).dtype if _packed(weight) else weight.dtype


def stored(weight: Tensor) -> list[Tensor]:
    """Return the tensors that a weight is made of, its scales included; of a plain one itself."""
    if _packed(weight):
        return [weight, *_tensors(_state(weight))]
    if _wrapped(weight):
        wrapper: Any = weight
        names: list[str] = wrapper.__tensor_flatten__()[0]
        return [getattr(weight, name) for name in names]
    return [weight]


def stored_bytes(weight: Tensor) -> int:
    """Return the bytes a weight takes, its scales included."""
    return sum(tensor.nbytes for tensor in stored(weight))


def plain_forward(host: Any, x: Tensor) -> Tensor:
    """Compute a layer whose quantised weight has been replaced by plain numbers, in x's precision outside."""
    weight, bias = host.weight, host.bias
    return F.linear(x.to(weight.dtype), weight, None if bias is None else bias.to(weight.dtype)).to(x.dtype)


def plain_parameter(weight: Tensor) -> nn.Parameter:
    """Return a frozen parameter of plain numbers."""
    return nn.Parameter(weight, requires_grad=False)


def _packed(weight: Tensor) -> bool:
    """Whether a weight is bitsandbytes' of 4 bits."""
    return _state(weight) is not None


def _state(weight: Tensor) -> Any:
    """Return bitsandbytes' scales and shape of a weight of 4 bits; None of any other."""
    return getattr(weight, "quant_state", None)


def _wrapped(weight: Tensor) -> bool:
    """Whether a weight is a tensor around others, as torchao's are, that computes with them."""
    return is_traceable_wrapper_subclass(weight) and not isinstance(weight, DTensor)


def _unpack(weight: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    state = weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError(
            "this 4-bit weight was packed again by bitsandbytes for a fast CPU and can't be read: "
            "set layer.support_avx512bf16_for_cpu = False before the first call (mmpeft.quantize does)"
        )
    return dequantize_4bit(weight.data, state).detach()


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of a quantisation state: scales, their own scales when quantised twice."""
    nested = [] if state.state2 is None else [state.state2.absmax]
    return [state.absmax, *nested, *([] if state.offset is None else [state.offset])]
