"""How much of a forward pass is kept for the backward pass: `use_memory`, for every library and one model only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from torch import nn

from mmpeft.anatomies.hosts import carried_by
from mmpeft.anatomies.reading import anatomy
from mmpeft.handle.setting import Setting
from mmpeft.injection.graft import check_forward
from mmpeft.injection.pipelines import modules_of
from mmpeft.kernels.backends import MemoryLevel
from mmpeft.settings import nearest


def use_memory(model: nn.Module | Mapping[str, nn.Module] | Any, level: MemoryLevel) -> Setting:
    """Keep for the backward pass of a model, or of all modules of a pipeline, as much as this level says from now on.

    ``standard`` is what torch and the fused edits keep. ``lean`` keeps nothing that activations, products of two
    branches, norms and casts make from what is kept, and no queries, keys and values that come from a linear layer
    as they are (rotated ones are kept); ``leanest`` no output of a linear layer in front of an activation either. What
    is not kept is computed again in the backward pass, by the same operations: gradients stay the same to the last bit.
    At both, the loss that a language model of transformers makes of ``labels`` never holds the logits of all positions
    (`mmpeft.kernels.deferred_logits`): it is the same but for rounding.
    It may be called again at any time; a copy of the model has its level. As a context manager,
    ``with use_memory(model, "lean"): ...``, it holds for what runs inside, in this thread or task only. Under
    gradient checkpointing, torch.compile and torch.func it is ``standard``, and the report says so.

    Raises:
        ValueError: If there is no such level.
    """
    if level not in get_args(MemoryLevel):
        raise ValueError(f"memory: {level!r} is no level{nearest(level, get_args(MemoryLevel))}")
    hosts = [host for module in modules_of(model).values() for host in _hosts(module)]
    for host in hosts if level != "standard" else []:
        check_forward(host)
    changed = hosts if level != "standard" else [host for host in hosts if carried_by(host)]
    return Setting(dict.fromkeys(changed, ("level", level)))


def _hosts(model: nn.Module) -> list[nn.Module]:
    """Return where a pass may enter: the model, its towers and their blocks."""
    known = anatomy(model)
    paths = [path for tower in known.towers for path in (tower.path, *(block.path for block in tower.blocks))]
    return [*{id(host): host for host in (model, *map(known.model.get_submodule, paths))}.values()]
