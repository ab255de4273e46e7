"""Hosts: modules that carry edits, seen without importing what edits are."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class Carried(Protocol):
    """What a host carries, as far as the rooms below injection see it (``mmpeft.injection.graft.Graft``)."""

    switches: list[tuple[nn.Module, str, Any, Any]]

    def project(self, host: nn.Module, x: Tensor) -> Tensor:
        """Return ``in_proj_weight x + in_proj_bias`` with the active edits on these rows."""

    def mixed(self, host: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own just now, by name."""


def graft_of(host: nn.Module) -> Carried:
    """Return what a host carries; it has to be one."""
    carried: Carried = host.__dict__["_graft"]
    return carried


def parameter(host: nn.Module, name: str) -> Tensor:
    """Return the tensor that a host computes with under this name: its own, or the one that stands in for it."""
    own: Tensor = getattr(host, name)
    carried: Carried | None = host.__dict__.get("_graft")
    return own if carried is None else carried.mixed(host).get(name, own)


def plain_class(module: nn.Module) -> type:
    """Return the class that a module has without its graft."""
    return type(module).__bases__[0] if "_graft" in module.__dict__ else type(module)
