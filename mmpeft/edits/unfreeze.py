"""Unfreezing: named parameters of a module become trainable copies; the base keeps its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpeft.anatomies.hosts import tensor_of
from mmpeft.anatomies.sites import ParametersSite, Site
from mmpeft.edits.base import (
    Arguments,
    Binding,
    Call,
    ChangesInput,
    ChangesOutput,
    Fold,
    Merges,
    Point,
    ReplacesParameters,
)
from mmpeft.kernels.quantized import is_quantized

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What torch's batch norms keep of the batches that they have seen; the last only counts them, and is not saved."""


class Unfreeze(ReplacesParameters, ChangesOutput, Merges):
    """The host computes with trainable copies of its parameters ``names`` in place of the frozen ones.

    With ``statistics`` a batch norm has running statistics here too: in training it uses those of each batch, and moves
    these. With ``detach_first`` the first of a sequence of outputs gives no gradient (Custom Diffusion: a text's
    start).
    """

    def __init__(self, site: ParametersSite, *, statistics: bool = False, detach_first: bool = False) -> None:
        super().__init__()
        self.names, self.detach_first = site.names, detach_first
        for name, value in site.tensors.items():
            if is_quantized(value):
                raise ValueError(f"{site.path}.{name}: a quantised weight can't be trained; adapters beside it can")
            self.register_parameter(name, nn.Parameter(value.detach().clone()))
        running = isinstance(site.host, _BatchNorm) and site.host.running_mean is not None
        self.statistics = (*STATISTICS,) if statistics and running else ()
        for name in self.statistics:
            value = tensor_of(site.host, name).clone()
            self.register_buffer(name, value, persistent=value.is_floating_point())

    @property
    def moves_statistics(self) -> bool:
        """Whether it has running statistics, and is trained."""
        return bool(self.statistics) and any(parameter.requires_grad for parameter in self.parameters())

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the module that owns the parameters, and to those that they are tied to."""
        assert isinstance(site, ParametersSite)
        owners = {id(site.host): (site.host, dict(zip(site.names, site.names, strict=True)))}
        for host, theirs, name in site.tied:
            owners.setdefault(id(host), (host, {}))[1][theirs] = name
        for host, names in owners.values():
            yield Binding(edit=self, host=host, point=Point.PARAMETERS, site=site, names=names)
        if self.detach_first:
            yield Binding(edit=self, host=site.host, point=Point.OUTPUT, site=site)

    def parameters_of(self, binding: Binding) -> dict[str, Tensor]:
        """The trainable copies, in the precision of the base."""
        host, names = binding.host, binding.names
        copies = {name: self.get_parameter(mine).to(tensor_of(host, name).dtype) for name, mine in names.items()}
        return copies | {name: self.get_buffer(name) for name in self.statistics if host is binding.site.host}

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Let no gradient through the first position of what the copies made."""
        return torch.cat([y[:, :1].detach(), y[:, 1:]], 1)

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """Return both as they are: ``parameters_of`` has put the copies there, and ``output`` cuts a gradient only."""
        return weight, bias

    def extra_repr(self) -> str:
        """Names and shapes."""
        return ", ".join(f"{name} {tuple(self.get_parameter(name).shape)}" for name in self.names)


class NormalisedHead(Unfreeze, ChangesInput):
    """``W (x - mean) / sqrt(var + eps) + b``: trainable copies of W and b behind a batch norm without weights.

    In training, mean and variance are the batch's, and running ones (momentum 0.1) are kept for evaluation; in a head
    that is not trained they stay as they are. AdaptFormer's head, as in MAE (He et al. 2022, arXiv:2111.06377).
    """

    shifts = True
    eps = 1e-6
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, site: ParametersSite) -> None:
        super().__init__(site)
        width = site.tensors["weight"].shape[1]
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the head's parameters, and to its input."""
        return [*super().bind(site), *self.bind_input(site)]

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Normalise the features (batch, width)."""
        features, training = args[0], self.training and self.get_parameter("weight").requires_grad
        if training and len(features) == 1:
            raise ValueError("norm: a training batch of one sample has no variance; train.drop_last=true leaves it out")
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        normed = F.batch_norm(wide, self.running_mean, self.running_var, training=training, eps=self.eps)
        return (normed.to(features.dtype), *args[1:]), kwargs

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """``W / sqrt(var + eps)`` and ``b - W mean / sqrt(var + eps)``."""
        scaled = weight / (self.running_var.to(weight) + self.eps).sqrt()
        return scaled, None if bias is None else bias - scaled @ self.running_mean.to(weight)
