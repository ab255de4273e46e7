"""Grafting: a host's class is swapped for a generated subclass of its own, whose forward also runs the edits.

Nothing is wrapped and nothing renamed: ``isinstance``, attributes and state-dict keys stay as they were.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.sites import AttentionSite, Switch
from mmpeft.edits.base import Binding, Call, Together
from mmpeft.injection.attending import Attending
from mmpeft.injection.fused import computed, projected, projection_updates, updates_of
from mmpeft.kernels.backends import Backend, MemoryLevel
from mmpeft.kernels.recompute import recomputing
from mmpeft.kernels.rows import Interleaved, put, take

Forward = Callable[..., Any]
ENTRIES = (
    "forward_features",
    "forward_head",
    "forward_intermediates",
    "get_intermediate_layers",
    "encode_image",
    "encode_text",
)
"""Other public doors of whole models: parameters that the model owns itself are replaced behind these too."""


class Graft:
    """What a host carries: all bindings by adapter, the calls of the active ones in order, and its attention kernel."""

    def __init__(self) -> None:
        self.bindings: dict[str, list[Binding]] = {}
        self.calls: tuple[Call, ...] = ()
        self.inputs: tuple[Call, ...] = ()
        self.parameters: tuple[Call, ...] = ()
        self.features: tuple[Call, ...] = ()
        self.outputs: tuple[Call, ...] = ()
        self.projected: tuple[Call, ...] = ()
        self.projections: tuple[Call, ...] = ()
        self.attentions: tuple[Call, ...] = ()
        self.backend: Backend = "auto"
        self.place: AttentionSite | None = None
        self.level: MemoryLevel = "standard"
        self.carry: Forward | None = None
        self.taps: tuple[nn.Module, ...] = ()
        self.tapped = False
        self.tapped_by: set[str] = set()
        self.seen: Tensor | None = None
        self.made: Any = None
        self.replaced = False
        self.originals: dict[str, Tensor] = {}
        self.stand_in: Forward | None = None
        self.switches: list[Switch] = []

    def attach(self, name: str, binding: Binding) -> None:
        """Take a binding of an adapter, which runs when it is activated; a switch is as its first binding found it."""
        self.bindings.setdefault(name, []).append(binding)
        self.note(binding.site.switches)

    def note(self, switches: tuple[Switch, ...]) -> None:
        """Take switches that are set while this host does not run as its library wrote it."""
        known = [(module, attribute) for module, attribute, *_ in self.switches]
        self.switches += [switch for switch in switches if switch[:2] not in known]

    @property
    def needed(self) -> bool:
        """Whether the host has to carry this."""
        return bool(self.bindings) or self.place is not None or self.level != "standard"

    @property
    def running(self) -> bool:
        """Whether the host does not run as its library wrote it."""
        return bool(self.calls) or self.place is not None

    def compute_with(self, backend: Backend, place: AttentionSite | None) -> None:
        """Make this the kernel of the host's attention, which lies at ``place``; None: as its library does it."""
        self.backend, self.place = backend, place
        self.activate([*self.calls])

    def activate(self, calls: list[Call]) -> None:
        """Make these the calls that the host's forward runs; none of them leaves the original forward."""
        self.calls = tuple(calls)
        self.inputs = tuple(call for call in calls if call.binding.point == "input")
        self.parameters = tuple(call for call in calls if call.binding.point == "parameters")
        self.features = tuple(call for call in calls if call.binding.point == "features")
        self.outputs = tuple(call for call in calls if call.binding.point == "output")
        self.projected = tuple(call for call in calls if call.binding.point == "projected")
        self.projections = tuple(call for call in calls if call.binding.point == "projection")
        self.attentions = tuple(call for call in calls if call.binding.point == "attention")
        self.carry = next((call.binding.carry for call in calls if call.binding.point == "carrier"), None)
        if self.carry is None and self.place is not None and self.place.carrier is not None:
            self.carry = self.place.carrier[1]
        self.taps = tuple(
            {id(tap): tap for call in (*self.inputs, *self.outputs) if (tap := call.binding.tap) is not None}.values()
        )

    def switch(self) -> None:
        """Set the switches as this host runs."""
        for module, attribute, on, off in self.switches:
            setattr(module, attribute, on if self.running else off)

    def run(self, host: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute the host's output with its active edits."""
        forward = self.carry or forward
        if self.tapped:
            self.seen = args[0]
        for call in self.inputs:
            args, kwargs = _enter(call, args, kwargs)
        updates = [] if self.parameters else updates_of(host, forward, args[0], self.outputs)
        if updates:
            y = computed(host, forward, args[0], updates)
        elif self.attentions or self.place is not None:
            with Attending(self.attentions, self.backend, self.place, args[0]):
                y = self._compute(host, forward, args, kwargs)
        else:
            y = self._compute(host, forward, args, kwargs)
        own = forward is nn.Linear.forward and not torch.is_grad_enabled() and y.is_contiguous()
        for call in self.outputs[len(updates) :]:
            y = _leave(call, args[0], y, own=own)
        for tap in self.taps:
            tap._graft.seen = tap._graft.made = None  # type: ignore[union-attr]
        if self.tapped:
            self.made = y
        return y

    def project(self, host: nn.Module, x: Tensor) -> Tensor:
        """Return ``in_proj_weight x + in_proj_bias`` with the edits on these rows: what a carrier calls."""
        for call in self.projected:
            (x,), _ = _enter(call, (x,), {})
        updates = projection_updates(host, x, self.projections)
        y = projected(host, x, updates)
        for call in self.projections[len(updates) :]:
            y = _leave(call, x, y)
        return y

    def _compute(self, host: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        routed = [call for call in self.parameters if call.route is not None]
        if not routed:
            return replaced(host, self.mixed(host), forward, args, kwargs)
        y = forward(host, *args, **kwargs)
        for call in routed:
            rows = call.route.rows(len(args[0]))  # type: ignore[union-attr]
            tensors = call.binding.edit.parameters_of(call.binding)
            y = y.index_copy(0, rows, replaced(host, tensors, forward, (args[0][rows], *args[1:]), kwargs))
        return y

    def mixed(self, host: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own: base + sum of weight * (copy - base)."""
        if len(self.parameters) == 1 and self.parameters[0].weight == 1.0:
            binding = self.parameters[0].binding
            return binding.edit.parameters_of(binding)
        mixed: dict[str, Tensor] = {}
        for call in self.parameters:
            for name, value in call.binding.edit.parameters_of(call.binding).items():
                base: Tensor = host._parameters[name]  # type: ignore[assignment]
                mixed[name] = mixed.get(name, base) + call.weight * (value - base)
        return mixed


def _enter(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    edit, x = call.binding.edit, args[0]
    if isinstance(call, Together):
        return edit.routed_input(args, kwargs, call)
    new, kwargs = edit.input(args, kwargs, call)
    if call.weight != 1.0 and not edit.weighs_itself:
        return (x + call.weight * (new[0] - x), *new[1:]), kwargs
    if call.route is not None and not edit.routes_itself:
        rows = call.route.rows(len(x))
        return (x.index_copy(0, rows, new[0][rows]), *new[1:]), kwargs
    return new, kwargs


def _leave(call: Call, x: Tensor, y: Any, *, own: bool = False) -> Any:
    """Return the output after a call; one that is the host's ``own``, and nobody else's, may be written into."""
    binding = call.binding
    if isinstance(y, tuple):
        return (_leave(call, x, y[0]), *y[1:])
    if binding.tap is not None:
        x = call.tapped()
    part = y if binding.rows is None else take(y, binding.rows, -1)
    if isinstance(call, Together):
        new = binding.edit.routed_output(x, part, call, own=own and not isinstance(binding.rows, Interleaved))
        if new is part:
            return y
    elif call.route is None:
        new = binding.edit.gated(x, part, call)
    else:
        rows = call.route.rows(len(y))
        new = part.index_copy(0, rows, binding.edit.gated(x[rows], part[rows], call))
    if call.weight != 1.0:
        new = part + call.weight * (new - part)
    return new if binding.rows is None else put(y, binding.rows, new, -1)


def replaced(host: nn.Module, tensors: dict[str, Tensor], forward: Forward, args: Any, kwargs: Any) -> Any:
    """Run ``forward`` while ``tensors`` stand in for the host's parameters of those names."""
    if not tensors:
        return forward(host, *args, **kwargs)
    own = {name: host._parameters[name] for name in tensors}
    host._graft.replaced = True  # type: ignore[union-attr]
    try:
        for name, value in tensors.items():
            host._parameters[name] = value  # type: ignore[assignment]
        return forward(host, *args, **kwargs)
    finally:
        host._graft.replaced = False  # type: ignore[union-attr]
        for name, parameter in own.items():
            host._parameters[name] = parameter


_GENERATED: dict[type, type] = {}


def grafted_class(cls: type) -> type:
    """Return the generated subclass of a module class; the same one each time."""
    if cls not in _GENERATED:
        entries = {name: _entry(name, getattr(cls, name)) for name in ENTRIES if hasattr(cls, name)}
        body = {
            "forward": _forward(cls),
            "__reduce_ex__": _reduce,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,  # by which transformers knows what a class can return
            "__doc__": cls.__doc__,
        }
        _GENERATED[cls] = type(f"Grafted{cls.__name__}", (cls,), body | entries)
    return _GENERATED[cls]


def _forward(cls: type) -> Forward:
    original: Forward = cls.forward  # type: ignore[attr-defined]
    first = next(islice(inspect.signature(original).parameters, 1, None), "")

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        graft: Graft = self._graft  # type: ignore[assignment]
        with recomputing(graft.level):
            if graft.calls or graft.tapped or graft.place is not None:
                if not args:
                    args = (kwargs.pop(first, None),)
                return graft.run(self, original, args, kwargs)
            return (graft.stand_in or original)(self, *args, **kwargs)

    return forward


def _entry(name: str, original: Forward) -> Forward:
    def entry(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        graft: Graft = self._graft  # type: ignore[assignment]
        if name == "forward_intermediates":
            for call in graft.features:
                call.binding.edit.features()
        with recomputing(graft.level):
            if graft.replaced:
                return original(self, *args, **kwargs)
            return replaced(self, graft.mixed(self), original, args, kwargs)

    return entry


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    cls = type(self).__bases__[0]
    _, arguments, *rest = cast(tuple[Any, ...], super(type(self), self).__reduce_ex__(protocol))
    return (_rebuild, (cls, *arguments[1:]), *rest)


def _rebuild(cls: type, *arguments: Any) -> Any:
    new = grafted_class(cls)
    return new.__new__(new, *arguments)


def check_forward(host: nn.Module) -> None:
    """Raise a ValueError when the host's forward is not that of its class: a subclass could not extend it."""
    if "forward" in host.__dict__:
        raise ValueError(
            f"{type(host).__name__} has a forward of its own instance (set by a hook such as accelerate's): "
            "adapt the model before that is installed"
        )


def graft(host: nn.Module) -> Graft:
    """Return the host's graft; swap the host's class when it has none yet."""
    if "_graft" not in host.__dict__:
        object.__setattr__(host, "_graft", Graft())
        host.__class__ = grafted_class(type(host))
    return host._graft  # type: ignore[return-value]


def ungraft(host: nn.Module) -> None:
    """Give the host its own class back."""
    host.__class__ = plain_class(host)
    del host.__dict__["_graft"]
