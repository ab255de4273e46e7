"""Routing: the calls of many adapters at one host, each for its own samples, as few calls of stacked weights."""

from __future__ import annotations

import operator
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.injection.edits.base import Call, Edit, Route
from mmpeft.kernels.routing import Layout, Stack

POINTS = ("input", "output", "projected", "projection", "attention")
"""Where calls can be one: the others replace parameters."""


class Serving:
    """The samples that each adapter serves just now; calls hold on to it, and each ``adapters.route`` fills it anew."""

    def __init__(self) -> None:
        self.routes: Mapping[str, Route] = {}
        self._layouts: dict[tuple[str, ...], Layout] = {}

    def serve(self, routes: Mapping[str, Route]) -> None:
        """Take the routes by adapter."""
        self.routes, self._layouts = routes, {}

    def layout(self, names: tuple[str, ...]) -> Layout:
        """Return how the samples of these adapters lie in the batch."""
        if names not in self._layouts:
            routes = [self.routes[name] for name in names]
            self._layouts[names] = Layout([route.samples for route in routes], routes[0].batch, routes[0].device)
        return self._layouts[names]


@dataclass(frozen=True)
class Share:
    """The part of an adapter in what is served."""

    serving: Serving
    name: str

    def rows(self, length: int) -> Tensor:
        """Indices of the adapter's samples into a leading dimension of ``length``."""
        return self.serving.routes[self.name].rows(length)


class Stacked:
    """The weights of several edits on top of each other, kept for as long as none of them changes.

    They are made anew in every pass where they get gradients, torch compiles, or a tensor doesn't count its changes
    (those of inference mode) or is sharded. Copies and pickles start without.
    """

    def __init__(self, edits: tuple[Edit, ...]) -> None:
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

    def __reduce__(self) -> tuple[type[Stacked], tuple[tuple[Edit, ...]]]:
        return Stacked, (self.edits,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Together(Call):
    """Calls of as many adapters as one; what they have in common is said by the first one's binding."""

    names: tuple[str, ...]
    serving: Serving
    weights: Stacked

    @property
    def layout(self) -> Layout:
        """Which of the adapters serves which samples."""
        return self.serving.layout(self.names)

    def stack(self, dtype: torch.dtype) -> Stack:
        """Return the adapters' weights in a precision."""
        return self.weights.of(dtype, self.serving.routes)


def together(calls: Iterable[tuple[str, Call]], serving: Serving) -> list[Call]:
    """Return the calls of one host, given by adapter and in the order of each, with as many as possible in one.

    Adapters that serve different samples don't see each other's: only the order inside of each matters.
    """
    points: dict[str, dict[str, list[tuple[Hashable, Call]]]] = {}
    for name, call in calls:
        points.setdefault(call.binding.point, {}).setdefault(name, []).append((_kind(call), call))
    return [call for queues in points.values() for call in _merged(queues, serving)]


def _merged(queues: dict[str, list[tuple[Hashable, Call]]], serving: Serving) -> Iterable[Call]:
    everyone = len(serving.routes)
    while queues:
        first, ((kind, call), *_) = next(iter(queues.items()))
        names = [first] if kind is None else [name for name, own in queues.items() if own[0][0] == kind]
        if call.binding.edit.count and len(names) < everyone:
            names, kind = [first], None
        edits = tuple(queues[name].pop(0)[1].binding.edit for name in names)
        if kind is None:
            yield call
        else:
            own = {field.name: getattr(call, field.name) for field in fields(Call)}
            yield Together(**own, names=tuple(names), serving=serving, weights=Stacked(edits))
        for name in [name for name in names if not queues[name]]:
            del queues[name]


def _kind(call: Call) -> Hashable:
    """Return what calls that can be one have in common; None: this can't be part of one."""
    binding = call.binding
    alike = None if binding.edit.input_gate is not None or binding.point not in POINTS else binding.edit.alike()
    if alike is None:
        return None
    return type(binding.edit), binding.index, repr(binding.rows), id(binding.tap), call.offset, alike
