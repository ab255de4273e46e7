"""What a low-rank adapter amounts to, by plain arithmetic of this file: its deltas written into a copy's weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import mmpeft
from mmpeft.kernels.rows import Interleaved


def written(model: nn.Module, adapters: Any) -> nn.Module:
    """Return a plain copy of the model whose weights hold W + s B A of each place, and no adapter."""
    plain: Any = copy.deepcopy(model)
    mmpeft.adapters(plain).remove()
    for site, edit, _ in (place for part in adapters.parts().values() for place in part.places):
        weight = plain.get_submodule(site.host_path)._parameters[site.weight]
        delta = edit.scale * (edit.lora_B.detach().flatten(1) @ edit.lora_A.detach().flatten(1))
        with torch.no_grad():
            _add(weight.T if site.transposed else weight, site.rows, delta.to(weight.dtype))
    return plain


def _add(weight: Tensor, rows: Any, delta: Tensor) -> None:
    if isinstance(rows, Interleaved):
        grouped = weight.view(rows.groups, -1, weight.shape[1])[:, rows.part]
        grouped += delta.view(grouped.shape)
    else:
        part = weight[rows or slice(None)]
        part += delta.view(part.shape)
