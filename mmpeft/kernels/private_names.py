"""Every private name of other libraries that mmpeft relies on: why, and with which versions it was tried.

All were tried with torch 2.15, transformers 5.23, diffusers 0.42, accelerate 1.15 and Python 3.11;
``tests/kernels/test_private_names.py`` fails by name when one of them is gone. Elsewhere three kinds are used as they
are: ``_parameters``, ``_modules`` and ``_buffers`` of ``nn.Module`` and ``_version`` and ``_base`` of tensors, which
torch's own documentation of extending it names; classes of torch whose module is private but which it documents
(``torch.utils._python_dispatch``, ``torch.utils._pytree``, ``torch._subclasses.fake_tensor``); and base classes that
have no public twin (``_ConvNd``, ``_BatchNorm``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn


def saved_tensor_hooks() -> Any:
    """Return torch's innermost pair of hooks on saved tensors, None for none.

    torch.autograd.graph can push hooks, but not say which are there: under a gradient checkpoint nothing is kept twice.
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def allows_saved_tensor_hooks() -> bool:
    """Whether hooks on saved tensors may be pushed just now; torch.func forbids them."""
    allowed: bool = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    return allowed


def without_function_modes() -> AbstractContextManager[Any]:
    """Return a context in which no TorchFunctionMode watches; torch has no public one for all modes at once."""
    context: AbstractContextManager[Any] = torch._C.DisableTorchFunction()
    return context


def without_subclass_functions() -> AbstractContextManager[Any]:
    """Return a context in which a subclass of Tensor doesn't see its functions; torch documents it under this name."""
    context: AbstractContextManager[Any] = torch._C.DisableTorchFunctionSubclass()
    return context


def without_storage(kind: type[Tensor], shape: Sequence[int], like: Tensor, *, requires_grad: bool) -> Any:
    """Return a tensor of a subclass that has a shape, precision and device but no memory; torch has no public way."""
    make = Tensor._make_wrapper_subclass
    return make(kind, torch.Size(shape), dtype=like.dtype, device=like.device, requires_grad=requires_grad)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody reads or changes what a module gets or makes: there is no public question for it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_fake_mode() -> bool:
    """Whether tensors are fake just now, where no number may be drawn; torch has no public question for it."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is running; torch has no public question for it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def storage_number(tensor: Tensor) -> int:
    """Return a number of the tensor's storage, also of one without memory; ``data_ptr`` is 0 or refused there."""
    number: int = tensor.untyped_storage()._cdata
    return number


def has_compiled() -> bool:
    """Whether torch.compile has compiled anything in this process: ``torch._dynamo.reset`` imports much else."""
    return bool(torch._dynamo.utils.counters.get("frames"))


def convolved(host: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Return a Conv2d's convolution with another weight, its padding mode included, without a bias."""
    y: Tensor = host._conv_forward(x, weight, None)  # type: ignore[operator]
    return y


def packs_projections(attention: nn.MultiheadAttention) -> bool:
    """Whether q, k and v of an ``nn.MultiheadAttention`` come from one packed weight: it has no public flag."""
    return bool(attention._qkv_same_embed_dim)


def class_for(auto: Any, config: Any) -> Any:
    """Return the class that one of transformers' Auto classes makes of a configuration, None for none.

    Its public ``from_config`` builds the model at once, and raises for a configuration that it does not know.
    """
    return auto._model_mapping.get(type(config), None)


def built(kind: Any, config: Any, **options: Any) -> Any:
    """Return a transformers model with random weights, of a class that is no Auto class; these alone are public."""
    return kind._from_config(config, **options)


def attention_of(config: Any) -> str | None:
    """Return the attention kernel that a configuration of transformers names."""
    name: str | None = config._attn_implementation
    return name


def tell_attention(config: Any, name: str) -> None:
    """Let a copied configuration name a kernel; its public setter reaches into the model's other configurations."""
    config._attn_implementation_internal = name


def flux_packed(pipeline: Any, latents: Tensor) -> Tensor:
    """Return Flux's latents (batch, channels, height, width) as the tokens of 2 x 2 places that its model takes."""
    packed: Tensor = pipeline._pack_latents(latents, *latents.shape)
    return packed


def flux_unpacked(pipeline: Any, tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Return Flux's tokens as latents, of pictures of this height and width in pixels."""
    latents: Tensor = pipeline._unpack_latents(tokens, *size, pipeline.vae_scale_factor)
    return latents


def flux_positions(pipeline: Any, latents: Tensor) -> Tensor:
    """Return the positions of the tokens that `flux_packed` makes of latents."""
    count, _, height, width = latents.shape
    positions: Tensor = pipeline._prepare_latent_image_ids(
        count, height // 2, width // 2, device=latents.device, dtype=latents.dtype
    )
    return positions


def forget_accelerator(state: Any) -> None:
    """Let accelerate's shared state be made anew, so that runs of other precisions can follow in one process."""
    state._reset_state()


def parsed_expression(expression: str) -> Any:
    """Return a regular expression as ``re`` reads it; ``sre_parse`` was the public name until Python 3.11."""
    return re._parser.parse(expression)  # type: ignore[attr-defined]
