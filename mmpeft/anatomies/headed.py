"""What every head of ours has in common: the backbone stays the library's own object, and its adapters fit it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from mmpeft.anatomies.anatomy import Anatomy, parameters_site
from mmpeft.anatomies.sites import ParametersSite, Site


class Headed(nn.Module):
    """A ``backbone`` of some library with a ``head`` of ours; an adapter of both also loads into the backbone alone.

    Its anatomy is the backbone's, with the head's own sites as a further tower ``task``.
    """

    backbone: Any
    head: nn.Module
    words: Callable[[str], tuple[int, ...]] | None = None
    """Turns words into token ids, where the model came with its tokenizer."""

    def head_sites(self) -> tuple[Site, ...]:
        """Return the sites of the head: by default those of its parameters."""
        return tuple(self.parameter_sites())

    def parameter_sites(self) -> Iterator[ParametersSite]:
        """Yield a site, named ``head``, for every module of the head that owns parameters."""
        for path, module in self.head.named_modules(prefix="task"):
            if module._parameters:
                yield parameters_site(module, path, name="head", tower="task")

    def complete(self, anatomy: Anatomy) -> Anatomy:
        """Return the backbone's anatomy with what only the whole knows."""
        return replace(anatomy, words=self.words)


def backbone_of(module: nn.Module) -> nn.Module:
    """Return the library's own model, without a head of ours around it."""
    return module.backbone if isinstance(module, Headed) else module
