"""Grafting: a host's class is swapped for a generated subclass of its own, whose forward also runs the edits.

Nothing is wrapped and nothing renamed: ``isinstance``, attributes and state-dict keys stay as they were.
"""

from __future__ import annotations

import inspect
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmpeft.anatomies.hosts import Tap, plain_class, tensor_of
from mmpeft.anatomies.libraries.entries import ENTRIES, FEATURES
from mmpeft.anatomies.sites import AttentionSite, Switch
from mmpeft.edits.base import Binding, Call, ChangesInput, ChangesOutput, RefusesFeatures, ReplacesParameters
from mmpeft.edits.together import StacksInput, StacksOutput, Together
from mmpeft.injection.attending import Attending
from mmpeft.injection.fused import computed, projected, projection_updates, updates_of
from mmpeft.injection.schedule import EMPTY, Forward
from mmpeft.kernels.backends import Backend, MemoryLevel
from mmpeft.kernels.recompute import recomputing
from mmpeft.kernels.rows import Interleaved, put, take


class Graft:
    """What a host carries: all bindings by adapter, the schedule of the active ones, and how it computes."""

    def __init__(self) -> None:
        self.bindings: dict[str, list[Binding]] = {}
        self.schedule = EMPTY
        self.backend: Backend = "auto"
        self.attention: AttentionSite | None = None
        """Where the host calls the kernel of attention; None: that is computed as its library does it."""
        self.level: MemoryLevel = "standard"
        self.tap = Tap()
        self.stand_in: Forward | None = None
        """A forward in place of that of the host's class: of merged plain numbers, or one that a tracer watches."""
        self.replaced = False
        """Whether tensors stand in for the host's parameters just now."""
        self.originals: dict[str, Tensor] = {}
        """The base's parameters, while adapters are merged into them."""
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
    def calls(self) -> tuple[Call, ...]:
        """The active edits at this host, in order."""
        return self.schedule.calls

    @property
    def inner(self) -> Forward | None:
        """The forward that the host runs below its edits; None for that of its class."""
        by_kernel = None if self.attention is None or self.attention.carrier is None else self.attention.carrier[1]
        return self.stand_in or self.schedule.carry or by_kernel

    @property
    def needed(self) -> bool:
        """Whether the host has to carry this."""
        return bool(self.bindings) or self.attention is not None or self.level != "standard"

    @property
    def running(self) -> bool:
        """Whether the host does not run as its library wrote it."""
        return bool(self.schedule.calls) or self.attention is not None

    def switch(self) -> None:
        """Set the switches as this host runs."""
        for module, attribute, on, off in self.switches:
            setattr(module, attribute, on if self.running else off)

    def run(self, host: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute the host's output with its active edits."""
        schedule, forward = self.schedule, self.inner or forward
        if self.tap.open:
            self.tap.seen = args[0]
        for call in schedule.inputs:
            args, kwargs = _enter(call, args, kwargs)
        updates = [] if schedule.parameters else updates_of(host, forward, args[0], schedule.outputs)
        if updates:
            y = computed(host, forward, args[0], updates)
        elif schedule.attentions or self.attention is not None:
            with Attending(schedule.attentions, self.backend, self.attention, args[0]):
                y = self._compute(host, forward, args, kwargs)
        else:
            y = self._compute(host, forward, args, kwargs)
        own = forward is nn.Linear.forward and not torch.is_grad_enabled() and y.is_contiguous()
        for call in schedule.outputs[len(updates) :]:
            y = _leave(call, args[0], y, own=own)
        for tap in schedule.taps:
            tap.seen = tap.made = None
        if self.tap.open:
            self.tap.made = y
        return y

    def project(self, host: nn.Module, x: Tensor) -> Tensor:
        """Return ``in_proj_weight x + in_proj_bias`` with the edits on these rows: what a carrier calls."""
        for call in self.schedule.projected:
            (x,), _ = _enter(call, (x,), {})
        projections = self.schedule.projections
        updates = projection_updates(host, x, projections)
        y = projected(host, x, updates)
        for call in projections[len(updates) :]:
            y = _leave(call, x, y)
        return y

    def _compute(self, host: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        routed = [call for call in self.schedule.parameters if call.route is not None]
        if not routed:
            return replaced(host, self.mixed(host), forward, args, kwargs)
        y = forward(host, *args, **kwargs)
        for call in routed:
            assert call.route is not None
            rows = call.route.rows(len(args[0]))
            y = y.index_copy(0, rows, replaced(host, _tensors(call), forward, (args[0][rows], *args[1:]), kwargs))
        return y

    def mixed(self, host: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own: base + sum of weight * (copy - base)."""
        parameters = self.schedule.parameters
        if len(parameters) == 1 and parameters[0].weight == 1.0:
            return _tensors(parameters[0])
        mixed: dict[str, Tensor] = {}
        for call in parameters:
            for name, value in _tensors(call).items():
                base = tensor_of(host, name)
                mixed[name] = mixed.get(name, base) + call.weight * (value - base)
        return mixed


def _tensors(call: Call) -> dict[str, Tensor]:
    edit = call.binding.edit
    assert isinstance(edit, ReplacesParameters)
    return edit.parameters_of(call.binding)


def _enter(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    edit, x = call.binding.edit, args[0]
    if isinstance(call, Together):
        assert isinstance(edit, StacksInput)
        return edit.routed_input(args, kwargs, call)
    assert isinstance(edit, ChangesInput)
    new, kwargs = edit.input(args, kwargs, call)
    if call.weight != 1.0 and not edit.weighs_itself:
        return (x + call.weight * (new[0] - x), *new[1:]), kwargs
    if call.route is not None and not edit.routes_itself:
        rows = call.route.rows(len(x))
        return (x.index_copy(0, rows, new[0][rows]), *new[1:]), kwargs
    return new, kwargs


def _leave(call: Call, x: Tensor, y: Any, *, own: bool = False) -> Any:
    """Return the output after a call; one that is the host's ``own``, and nobody else's, may be written into."""
    binding, edit = call.binding, call.binding.edit
    if isinstance(y, tuple):
        return (_leave(call, x, y[0]), *y[1:])
    if binding.tap is not None:
        x = call.tapped()
    part = y if binding.rows is None else take(y, binding.rows, -1)
    if isinstance(call, Together):
        assert isinstance(edit, StacksOutput)
        new = edit.routed_output(x, part, call, own=own and not isinstance(binding.rows, Interleaved))
        if new is part:
            return y
    else:
        assert isinstance(edit, ChangesOutput)
        if call.route is None:
            new = edit.gated(x, part, call)
        else:
            rows = call.route.rows(len(y))
            new = part.index_copy(0, rows, edit.gated(x[rows], part[rows], call))
    if call.weight != 1.0:
        new = part + call.weight * (new - part)
    return new if binding.rows is None else put(y, binding.rows, new, -1)


def replaced(host: nn.Module, tensors: dict[str, Tensor], forward: Forward, args: Any, kwargs: Any) -> Any:
    """Run ``forward`` while ``tensors`` stand in for the host's parameters of those names."""
    if not tensors:
        return forward(host, *args, **kwargs)
    parameters = parameters_of(host)
    own = {name: parameters[name] for name in tensors}
    carried = graft(host)
    carried.replaced = True
    try:
        parameters.update(tensors)
        return forward(host, *args, **kwargs)
    finally:
        carried.replaced = False
        parameters.update(own)


def parameters_of(host: nn.Module) -> dict[str, Tensor | None]:
    """Return a host's own parameters as a dict that also takes tensors that are no parameters, for a while."""
    return cast(dict[str, Tensor | None], host._parameters)


_GENERATED: dict[type[nn.Module], type[nn.Module]] = {}


def grafted_class(cls: type[nn.Module]) -> type[nn.Module]:
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


def _forward(cls: type[nn.Module]) -> Forward:
    original: Forward = cls.forward
    first = next(islice(inspect.signature(original).parameters, 1, None), "")

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        carried: Graft = self.__dict__["_graft"]
        with recomputing(carried.level):
            if carried.running or carried.tap.open:
                if not args:
                    args = (kwargs.pop(first, None),)
                return carried.run(self, original, args, kwargs)
            return (carried.stand_in or original)(self, *args, **kwargs)

    return forward


def _entry(name: str, original: Forward) -> Forward:
    def entry(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        carried: Graft = self.__dict__["_graft"]
        for call in carried.schedule.features if name == FEATURES else ():
            assert isinstance(call.binding.edit, RefusesFeatures)
            call.binding.edit.features()
        with recomputing(carried.level):
            if carried.replaced:
                return original(self, *args, **kwargs)
            return replaced(self, carried.mixed(self), original, args, kwargs)

    return entry


def _reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
    cls = type(self).__bases__[0]
    _, arguments, *rest = cast(tuple[Any, ...], super(type(self), self).__reduce_ex__(protocol))
    return (_rebuild, (cls, *arguments[1:]), *rest)


def _rebuild(cls: type[nn.Module], *arguments: Any) -> Any:
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
    carried: Graft = host.__dict__["_graft"]
    return carried


def ungraft(host: nn.Module) -> None:
    """Give the host its own class back."""
    host.__class__ = plain_class(host)
    del host.__dict__["_graft"]
