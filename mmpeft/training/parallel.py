"""One model on several processes: replicated (DDP), or its frozen blocks sharded (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


def parallelise(model: nn.Module, trained: Iterable[nn.Parameter], accelerator: Accelerator) -> nn.Module:
    """Return the module to call in training: the model itself, sharded in place, or wrapped for DDP.

    All processes start from the first one's weights. Sharding is asked for through accelerate's environment
    (``accelerate launch --use_fsdp --fsdp_version 2``, or ``ACCELERATE_USE_FSDP=true FSDP_VERSION=2`` on CPUs).
    """
    model.to(accelerator.device)
    if accelerator.num_processes == 1:
        return model
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return _shard(model, trained)
    devices = [accelerator.device.index] if accelerator.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def _shard(model: nn.Module, trained: Iterable[nn.Parameter]) -> nn.Module:
    """Shard each block as a unit, and all the rest with the adapters, which blocks use from outside, as the root's.

    The root is resharded after each forward: else the weights in use after an evaluation would be a stale copy.
    """
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"fsdp_version: {version} can't hold frozen and trained weights together: use fsdp_version: 2")
    for parameter in trained:
        broadcast(parameter.data)
    for block in _blocks(model):
        fully_shard(block)
    fully_shard(model, reshard_after_forward=True)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    from mmpeft.anatomies.reading import anatomy

    sketch = anatomy(model)
    return [sketch.model.get_submodule(block.path) for tower in sketch.towers for block in tower.blocks]


def let_first(accelerator: Accelerator, act: Callable[[], object]) -> None:
    """Let the first process act, once all are here; if it raises a ValueError, all of them do."""
    accelerator.wait_for_everyone()
    refusals: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            act()
        except ValueError as error:
            refusals = [str(error)]
    refusal = broadcast_object_list(refusals)[0]
    if refusal is not None:
        raise ValueError(refusal)


@contextmanager
def without_gradient_exchange(model: nn.Module) -> Iterator[None]:
    """Let gradients add up on each process inside the block; the first backward after it exchanges them."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)
    else:
        yield


@contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """Let the parameters below ``root`` be whole tensors inside the block; all processes must enter it.

    (FSDP's own ``unshard`` doesn't do: its state-dict hook shards again.)
    """
    sharded = [
        (module, name, parameter)
        for module in root.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    for module, name, parameter in sharded:
        module._parameters[name] = nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad)
    try:
        yield
    finally:
        for module, name, parameter in sharded:
            module._parameters[name] = parameter


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with all its shards, on every process; all of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, live: Tensor) -> Tensor:
    """Return a whole tensor on the device, and in the shards, of another."""
    value = value.to(live.device)
    return distribute_tensor(value, live.device_mesh, live.placements) if isinstance(live, DTensor) else value


@torch.no_grad()
def write(values: dict[str, Tensor], live: dict[str, Tensor]) -> None:
    """Copy whole or sharded values into live tensors of the same names."""
    for name, tensor in live.items():
        value = values[name]
        tensor.copy_(value if isinstance(value, DTensor) else like(value, tensor))
