"""Stand-in until main has its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from mmpeft.injection.anatomy import Anatomy, parameters_site
from mmpeft.injection.sites import ParametersSite


class Headed(nn.Module):
    """A ``backbone`` of some library with a ``head`` of ours."""

    backbone: Any
    head: nn.Module

    def head_sites(self) -> tuple[ParametersSite, ...]:
        """Return the sites of the head."""
        found = self.head.named_modules(prefix="task")
        return tuple(
            parameters_site(module, path, name="head", tower="task") for path, module in found if module._parameters
        )

    def complete(self, anatomy: Anatomy) -> Anatomy:
        """Return the backbone's anatomy with what only the whole knows."""
        return anatomy
