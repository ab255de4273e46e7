"""Edits of many adapters that serve different samples of one batch, computed from stacks of their weights."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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

    def routed_output(self, x: Tensor, y: Tensor, call: Together, *, in_place: bool) -> Tensor:
        """Return the host's output after the edits of a call; ``in_place`` it may be written into ``y``."""
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


class _Seen(NamedTuple):
    """The tensors of some edits, and where they lie in memory, as they were when these samples were first served."""

    served: object
    sources: list[Tensor]
    places: list[int] | None


class Stacked:
    """The weights of several edits on top of each other, kept for as long as none of them changes.

    They are made anew in every pass where they get gradients, torch compiles, or a tensor doesn't count its changes
    (those of inference mode) or is sharded. Copies and pickles start without. Threads may use one at the same time.
    """

    def __init__(self, edits: tuple[Stacks, ...]) -> None:
        self.edits = edits
        self._owners: list[tuple[dict[str, Any], str]] = []
        self._kept: tuple[object, Stack] = None, ()
        self._seen = _Seen(None, [], None)

    @property
    def kept(self) -> Stack:
        """The weights that are kept just now."""
        return self._kept[1]

    def of(self, dtype: torch.dtype, served: object) -> Stack:
        """Return the stack in a precision; where others are ``served`` than before, tensors may have been exchanged."""
        if torch.compiler.is_compiling():
            return self._made(dtype)
        seen = self._seen
        if seen.served is not served:
            seen = self._seen = self._look(served)
        trained = torch.is_grad_enabled() and any(source.requires_grad for source in seen.sources)
        if trained or seen.places is None:
            return self._made(dtype)
        ids, versions = [id(source) for source in seen.sources], [source._version for source in seen.sources]
        state = dtype, torch.is_inference_mode_enabled(), seen.places, ids, versions
        kept = self._kept
        if kept[0] != state:
            kept = self._kept = state, self._made(dtype)
        return kept[1]

    def _look(self, served: object) -> _Seen:
        """See which tensors the edits have now, and where these lie in memory, where that tells all."""
        if not self._owners:
            modules = [module for edit in self.edits for module in edit.sources()]
            owners = (
                (group, key) for module in modules for group in (module._parameters, module._buffers) for key in group
            )
            self._owners = [(group, key) for group, key in owners if group[key] is not None]
        sources = [group[key] for group, key in self._owners]
        plain = all(type(source) in (Tensor, nn.Parameter) and not source.is_inference() for source in sources)
        return _Seen(served, sources, [source.data_ptr() for source in sources] if plain else None)

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
        return self.table.value.layout(self.names)

    def stack(self, dtype: torch.dtype) -> Stack:
        """Return the adapters' weights in a precision."""
        return self.weights.of(dtype, self.table.value)
