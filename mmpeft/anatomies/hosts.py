"""Hosts: modules that carry edits, seen without importing what edits are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from mmpeft.kernels.passed import Passed

PLAIN = "_mmpeft_plain"
"""Attribute of a grafted class: the library's class that it stands for."""


class Tap:
    """What a module was given and what it made in this thread's forward pass, for edits elsewhere that read it."""

    def __init__(self) -> None:
        self.readers: set[str] = set()
        """The adapters with such edits."""
        self.seen = Passed()
        self.made = Passed()


class Carried(Protocol):
    """What a host carries, as far as rooms see it that don't graft (it is ``mmpeft.injection.graft.Graft``)."""

    tap: Tap

    @property
    def calls(self) -> Sequence[Any]:
        """The active edits at this host, in order."""

    @property
    def tapped(self) -> bool:
        """Whether an active edit elsewhere reads what this host sees."""

    @property
    def inner(self) -> Callable[..., Any] | None:
        """The forward that the host runs below its edits; None for that of its class."""

    def now(self) -> Any:
        """Return what the host runs in this thread or task."""

    def run(self, host: nn.Module, forward: Callable[..., Any], state: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute the host's output with the edits of ``now()``, by ``forward(host, *args, **kwargs)``."""

    def project(self, host: nn.Module, x: Tensor) -> Tensor:
        """Return ``in_proj_weight x + in_proj_bias`` with the active edits on these rows."""

    def mixed(self, host: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own just now, by name."""


def carried_by(module: nn.Module) -> Carried | None:
    """Return what a module carries; None for one that is no host."""
    carried: Carried | None = module.__dict__.get("_graft")
    return carried


def graft_of(host: nn.Module) -> Carried:
    """Return what a host carries; it has to be one."""
    carried: Carried = host.__dict__["_graft"]
    return carried


def parameter(host: nn.Module, name: str) -> Tensor:
    """Return the tensor that a host computes with under this name: its own, or the one that stands in for it."""
    stored: Tensor = getattr(host, name)
    carried = carried_by(host)
    return stored if carried is None else carried.mixed(host).get(name, stored)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer that a module has under this name."""
    tensor: Tensor = getattr(module, name)
    return tensor


def plain_class(module: nn.Module) -> type:
    """Return the class that a module has without its graft."""
    plain: type = getattr(type(module), PLAIN, type(module))
    return plain
