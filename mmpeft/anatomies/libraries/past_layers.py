"""Modules that read the weights of their layers without calling these, as torchvision's Swin does and Mamba.

Their own forward runs, in a scope in which each product with the weight of a layer is computed by that layer, its edits
included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmpeft.anatomies.hosts import carried_by, graft_of, plain_class

READERS: dict[str, tuple[str, ...]] = {
    "torchvision.models.swin_transformer.ShiftedWindowAttention": ("qkv", "proj"),
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": ("qkv", "proj"),
    "torchvision.models.video.swin_transformer.ShiftedWindowAttention3d": ("qkv", "proj"),
    "transformers.models.mamba.modeling_mamba.MambaMixer": ("dt_proj", "conv1d"),
    "transformers.models.falcon_mamba.modeling_falcon_mamba.FalconMambaMixer": ("dt_proj", "conv1d"),
    "transformers.models.jamba.modeling_jamba.JambaMambaMixer": ("dt_proj", "conv1d"),
}
"""Classes that read the weights of these layers of theirs."""
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def reads(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the layers whose weights a module reads past them."""
    kind = plain_class(module)
    return READERS.get(f"{kind.__module__}.{kind.__qualname__}", ())


def through_layers(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a module's own forward, with the products of its layers' weights computed by these layers."""
    forward: Callable[..., Any] = plain_class(self).forward  # type: ignore[attr-defined]
    layers = {name: layer for name in reads(self) if carried_by(layer := self.get_submodule(name)) is not None}
    standing_in = {name: tensors for name, layer in layers.items() if (tensors := graft_of(layer).mixed(layer))}
    if standing_in:
        twins = {name: _twin(layers[name], _parameters=tensors) for name, tensors in standing_in.items()}
        self = _twin(self, _modules=twins)
    weights = [(self.get_submodule(name)._parameters["weight"], layer) for name, layer in layers.items()]
    with ThroughLayers(weights):
        return forward(self, *args, **kwargs)


def _twin(module: nn.Module, **changed: dict[str, Any]) -> nn.Module:
    """Return a module that shares all with another, but for some of its parameters or children."""
    twin: nn.Module = object.__new__(plain_class(module))
    twin.__dict__ = {**module.__dict__, **{key: {**module.__dict__[key], **new} for key, new in changed.items()}}
    twin.__dict__.pop("_graft", None)
    return twin


class ThroughLayers(TorchFunctionMode):
    """Within this context ``F.linear(x, W, b)`` and ``W @ x`` with the weight W of a layer include the layer's edits.

    ``W @ x`` stands for ``W x + b`` without the bias, which the module adds itself.
    """

    def __init__(self, weights: Iterable[tuple[Tensor | None, nn.Module]]) -> None:
        super().__init__()
        self.weights = tuple(weights)

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute a product with a layer's weight by the layer, and all else as ever."""
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, bias = _arguments(*args, **kwargs)
            layer = self._layer(weight)
            if layer is not None:
                return _through(layer, x, weight, bias)
        elif func in PRODUCTS and not kwargs and (layer := self._layer(args[0])) is not None:
            bias = layer.bias
            y = _through(layer, args[1].transpose(-1, -2), args[0], bias)
            return (y if bias is None else y - bias).transpose(-1, -2)
        return func(*args, **kwargs)

    def _layer(self, weight: Any) -> Any:
        return next((layer for kept, layer in self.weights if kept is weight), None)


def _arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _through(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the layer's output for x, with its edits, and with the weight and bias that the module has given it."""

    def forward(host: nn.Module, x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    carried = graft_of(layer)
    y: Tensor = carried.run(layer, forward, carried.now(), (x,), {})
    return y
