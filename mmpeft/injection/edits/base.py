"""What every edit is: weights in the adapter's subtree, and a formula bound to one or more hosts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from mmpeft.injection.sites import Site

Point = Literal["parameters", "input", "output"]
Fold = tuple[Tensor, Tensor | None]


@dataclass(eq=False, kw_only=True)
class Binding:
    """One edit at one host: at which point of its forward, on which rows of its output, reading which input."""

    edit: Edit
    host: nn.Module
    point: Point
    site: Site
    rows: slice | None = None
    tap: nn.Module | None = None
    index: int = 0
    switches: tuple[tuple[nn.Module, str, Any, Any], ...] = ()


class Edit(nn.Module):
    """One reversible change at one site.

    A subclass implements the points that its ``bind`` names: ``output(x, y, host)`` returns the new output,
    ``input(args, kwargs, call)`` the new arguments, ``parameters()`` the tensors to compute with. One that can be
    written into the base's weights implements ``fold``.
    """

    mergeable = False

    def bind(self, site: Site) -> Iterable[Binding]:
        """Return where this edit attaches; by default to the output of the site's host."""
        return [Binding(edit=self, host=site.host, point="output", site=site)]

    def output(self, x: Tensor, y: Tensor, host: nn.Module) -> Tensor:
        """Return the host's output after this edit, given its input ``x`` and its output so far ``y``."""
        raise TypeError(f"{type(self).__name__} has no output")

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the host's arguments after this edit."""
        raise TypeError(f"{type(self).__name__} has no input")

    def parameters_of(self, host: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own of the same names."""
        raise TypeError(f"{type(self).__name__} has no parameters")

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """Return weight (out, in) and bias (out) with this edit in them, in the precision of the arguments."""
        raise TypeError(f"{type(self).__name__} can't be merged")
