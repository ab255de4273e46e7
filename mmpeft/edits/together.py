"""Edits of many adapters that serve different samples of one batch, computed from stacks of their weights."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.edits.base import Arguments, Call, Edit
from mmpeft.edits.routes import RoutingTable
from mmpeft.kernels.attention import Extra
from mmpeft.kernels.routing import BatchLayout, Stack


class Stacks(Edit):
    """Ability: edits that are ``alike`` and serve different samples can be computed together.

    A class inherits it through what it does for its samples: `StacksOutput`, `StacksInput` or `StacksKeys`.
    """

    def alike(self) -> Hashable:
        """Return what edits of this class must have in common to be computed together; None: this one can't be."""
        raise NotImplementedError

    def sources(self) -> Iterable[nn.Module]:
        """Return the modules whose tensors the stacked weights are made of: by default the edit and all inside."""
        return self.modules() if self._modules else (self,)

    @staticmethod
    def stacked(edits: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the weights of edits that are alike, each (edits, ...)."""
        raise NotImplementedError


class StacksOutput(Stacks):
    """Ability: changes outputs, each sample's by its own edit."""

    def routed_output(self, x: Tensor, y: Tensor, call: Together, *, own: bool) -> Tensor:
        """Return the host's output after the edits of a call; with ``own`` it may be written into ``y``."""
        raise NotImplementedError


class StacksInput(Stacks):
    """Ability: changes inputs, each sample's by its own edit."""

    def routed_input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Together) -> Arguments:
        """Return the host's arguments after the edits of a call."""
        raise NotImplementedError


class StacksKeys(Stacks):
    """Ability: adds keys and values, each sample's from its own edit."""

    def routed_extra(self, query: Tensor, call: Together) -> Extra:
        """Return the keys and values of the edits of a call, for its samples."""
        raise NotImplementedError


class Stacked:
    """The weights of several edits on top of each other, kept for as long as none of them changes.

    They are made anew in every pass where they get gradients, torch compiles, or a tensor doesn't count its changes
    (those of inference mode) or is sharded. Copies and pickles start without.
    """

    def __init__(self, edits: tuple[Stacks, ...]) -> None:
        self.edits = edits
        self.kept: Stack = ()
        self._state: object = None
        self._routes: object = None
        self._owners: list[tuple[dict[str, Any], str]] = []
        self._sources: list[Tensor] = []
        self._places: list[int] | None = None

    def of(self, dtype: torch.dtype, routes: object) -> Stack:
        """Return the stack in a precision; for other ``routes`` than before, tensors may have been exchanged."""
        if torch.compiler.is_compiling():
            return self._made(dtype)
        if routes is not self._routes:
            self._routes = routes
            self._look()
        trained = torch.is_grad_enabled() and any(source.requires_grad for source in self._sources)
        if trained or self._places is None:
            return self._made(dtype)
        state = dtype, torch.is_inference_mode_enabled(), self._places, [source._version for source in self._sources]
        if state != self._state:
            self._state, self.kept = state, self._made(dtype)
        return self.kept

    def _look(self) -> None:
        """See which tensors the edits have now, and where these lie in memory, where that tells all."""
        if not self._owners:
            modules = [module for edit in self.edits for module in edit.sources()]
            owners = ((own, key) for module in modules for own in (module._parameters, module._buffers) for key in own)
            self._owners = [(own, key) for own, key in owners if own[key] is not None]
        sources = [own[key] for own, key in self._owners]
        if len(sources) != len(self._sources) or not all(map(operator.is_, sources, self._sources)):
            self._sources, self._state = sources, None
        plain = all(type(source) in (Tensor, nn.Parameter) and not source.is_inference() for source in sources)
        self._places = [source.data_ptr() for source in sources] if plain else None

    def _made(self, dtype: torch.dtype) -> Stack:
        return tuple(part.to(dtype) for part in type(self.edits[0]).stacked(self.edits))

    def __reduce__(self) -> tuple[type[Stacked], tuple[tuple[Stacks, ...]]]:
        return Stacked, (self.edits,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Together(Call):
    """Calls of as many adapters as one; what they have in common is said by the first one's binding."""

    names: tuple[str, ...]
    table: RoutingTable
    weights: Stacked

    @property
    def layout(self) -> BatchLayout:
        """Which of the adapters serves which samples."""
        return self.table.layout(self.names)

    def stack(self, dtype: torch.dtype) -> Stack:
        """Return the adapters' weights in a precision."""
        return self.weights.of(dtype, self.table.routes)
