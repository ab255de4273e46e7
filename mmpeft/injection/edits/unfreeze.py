"""Unfreezing: named parameters of a module become trainable copies; the base keeps its own."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from mmpeft.injection.edits.base import Binding, Edit, Fold
from mmpeft.injection.sites import ParametersSite, Site


class Unfreeze(Edit):
    """The host computes with trainable copies of its parameters ``names`` in place of the frozen ones."""

    mergeable = True

    def __init__(self, site: ParametersSite) -> None:
        super().__init__()
        self.names = site.names
        for name, value in site.tensors.items():
            self.register_parameter(name, nn.Parameter(value.detach().clone()))

    def bind(self, site: Site) -> Iterable[Binding]:
        """Attach to the parameters of the module that owns them."""
        return [Binding(edit=self, host=site.host, point="parameters", site=site)]

    def parameters_of(self, host: nn.Module) -> dict[str, Tensor]:
        """The trainable copies."""
        return {name: self._parameters[name] for name in self.names}  # type: ignore[misc]

    def fold(self, weight: Tensor, bias: Tensor | None) -> Fold:
        """The copies themselves."""
        raise AssertionError("an unfrozen parameter is copied, not folded")

    def extra_repr(self) -> str:
        """Names and shapes."""
        return ", ".join(f"{name} {tuple(self._parameters[name].shape)}" for name in self.names)  # type: ignore[union-attr]
