"""Unfreezing: named parameters of a module become trainable copies; the base keeps its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mmpeft.injection.edits.base import Binding, Call, Edit
from mmpeft.injection.sites import ParametersSite, Site


class Unfreeze(Edit):
    """The host computes with trainable copies of its parameters ``names`` in place of the frozen ones.

    With ``detach_first`` the first of a sequence of outputs gives no gradient (Custom Diffusion: a text's start).
    """

    mergeable = True

    def __init__(self, site: ParametersSite, *, detach_first: bool = False) -> None:
        super().__init__()
        self.names, self.detach_first = site.names, detach_first
        for name, value in site.tensors.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the module that owns the parameters, and to those that they are tied to."""
        assert isinstance(site, ParametersSite)
        owners = {id(site.host): (site.host, dict(zip(site.names, site.names, strict=True)))}
        for host, theirs, own in site.tied:
            owners.setdefault(id(host), (host, {}))[1][theirs] = own
        for host, names in owners.values():
            yield Binding(edit=self, host=host, point="parameters", site=site, names=names)
        if self.detach_first:
            yield Binding(edit=self, host=site.host, point="output", site=site)

    def parameters_of(self, binding: Binding) -> dict[str, Tensor]:
        """The trainable copies, in the precision of the base."""
        base, own = binding.host._parameters, self._parameters
        return {name: own[mine].to(base[name].dtype) for name, mine in binding.names.items()}  # type: ignore[union-attr]

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Let no gradient through the first position of what the copies made."""
        return torch.cat([y[:, :1].detach(), y[:, 1:]], 1)

    def extra_repr(self) -> str:
        """Names and shapes."""
        return ", ".join(f"{name} {tuple(self._parameters[name].shape)}" for name in self.names)  # type: ignore[union-attr]
