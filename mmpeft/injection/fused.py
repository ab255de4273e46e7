"""Which edits are computed along with their host, by one fused function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmpeft.anatomies.hosts import tensor_of
from mmpeft.anatomies.layers import CONVOLUTION, FOUR_BITS, LINEAR, TRANSPOSED, name_of
from mmpeft.edits.base import Call, UpdatesWeight
from mmpeft.kernels.low_rank import fusible, low_rank_linear, low_rank_without_graph
from mmpeft.kernels.low_rank_convolution import fusible_convolution, low_rank_convolution, worth_fusing
from mmpeft.kernels.private_names import is_transformed
from mmpeft.kernels.rows import overlap
from mmpeft.kernels.updates import Update


def updates_of(host: nn.Module, forward: Callable[..., Any], x: Tensor, calls: Sequence[Call]) -> list[Update]:
    """Return the low-rank updates in front of all other edits, where they can be computed along with the host."""
    if not calls:
        return []
    name = name_of(forward)
    if name in CONVOLUTION:
        updates = _leading(calls) if fusible_convolution(host, x) else []
        return updates if updates and worth_fusing(host, x, updates) else []
    known = name in LINEAR or name in TRANSPOSED or name in FOUR_BITS
    return _leading(calls) if known and fusible(host, x) else []


def projection_updates(host: nn.Module, x: Tensor, calls: Sequence[Call]) -> list[Update]:
    """Return the same for the projection that a carrier computes."""
    return _leading(calls) if calls and fusible(host, x, "in_proj_weight") else []


def computed(host: nn.Module, forward: Callable[..., Any], x: Tensor, updates: Sequence[Update]) -> Tensor:
    """Return the host's output with these updates."""
    name = name_of(forward)
    if name in CONVOLUTION:
        assert isinstance(host, nn.Conv2d)
        return low_rank_convolution(host, x, updates)
    weight, bias = host._parameters["weight"], host._parameters["bias"]
    assert weight is not None
    return low_rank_linear(x, weight.T if name in TRANSPOSED else weight, bias, updates)


def projected(host: nn.Module, x: Tensor, updates: Sequence[Update]) -> Tensor:
    """Return ``in_proj_weight x + in_proj_bias`` with these updates, if any."""
    weight, bias = tensor_of(host, "in_proj_weight"), host._parameters.get("in_proj_bias")
    return low_rank_linear(x, weight, bias, updates) if updates else F.linear(x, weight, bias)


def briefly(host: nn.Module, x: Tensor, call: Call) -> Tensor | None:
    """Return a plain linear layer's output with the one update of a call, without a graph; None where it is no such.

    This is what a step of decoding does at each layer, hence short.
    """
    parameters, edit = host._parameters, call.binding.edit
    weight, bias = parameters["weight"], parameters["bias"]
    plain = type(x) is Tensor and type(weight) is nn.Parameter and type(bias) in (nn.Parameter, type(None))
    if not plain or weight is None or x.dtype != weight.dtype or not x.is_floating_point():
        return None
    if torch.is_autocast_enabled(x.device.type) or torch.compiler.is_compiling() or is_transformed():
        return None
    assert isinstance(edit, UpdatesWeight)
    update = edit.update(call.binding)
    if update is None or update.ratio is not None or update.dropout:
        return None
    update.scale, update.rows = update.scale * call.weight, call.binding.rows
    return low_rank_without_graph(x, weight, bias, update)


def _leading(calls: Sequence[Call]) -> list[Update]:
    updates: list[Update] = []
    for call in calls:
        update = _update(call)
        if update is None or (
            update.ratio is not None and any(overlap(update.rows, earlier.rows) for earlier in updates)
        ):
            return updates
        updates.append(update)
    return updates


def _update(call: Call) -> Update | None:
    edit = call.binding.edit
    if call.route is not None or edit.input_gate is not None or not isinstance(edit, UpdatesWeight):
        return None
    update = edit.update(call.binding)
    if update is None or (update.ratio is not None and call.weight != 1.0):
        return None
    return replace(update, scale=update.scale * call.weight, rows=call.binding.rows)
