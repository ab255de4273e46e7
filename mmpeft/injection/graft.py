"""Grafting: a host's class is swapped for a generated subclass of its own, whose forward also runs the edits.

Nothing is wrapped and nothing renamed: ``isinstance``, attributes and state-dict keys stay as they were.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from types import FunctionType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mmpeft.anatomies.hosts import PLAIN, Tap, plain_class, tensor_of
from mmpeft.anatomies.libraries.entries import ENTRIES, FEATURES, output_layer
from mmpeft.anatomies.sites import AttentionSite
from mmpeft.edits.base import Binding, Call, ChangesInput, ChangesOutput, RefusesFeatures, ReplacesParameters
from mmpeft.edits.together import StacksInput, StacksOutput, Together
from mmpeft.edits.weights import Weight
from mmpeft.injection.attending import Attending
from mmpeft.injection.containers import container_methods
from mmpeft.injection.fused import briefly, computed, projected, projection_updates, updates_of
from mmpeft.injection.schedule import EMPTY, Forward, Schedule
from mmpeft.injection.twins import TWIN, replaced
from mmpeft.kernels.backends import Backend, MemoryLevel
from mmpeft.kernels.recompute import recomputing
from mmpeft.kernels.rows import Interleaved, put, take
from mmpeft.kernels.scoped import Scoped, keep_for_recomputation, replacements


@dataclass(frozen=True, eq=False)
class Selection:
    """Some active adapters with their weights, what each host runs for them, and the towers that this touches."""

    active: Mapping[str, Weight]
    schedules: Mapping[Graft, Schedule]
    towers: frozenset[str]


class Kernel(NamedTuple):
    """How a host computes attention: by this backend, where it calls the kernel; None: as its library does it."""

    backend: Backend
    site: AttentionSite | None


class State(NamedTuple):
    """How a host runs."""

    schedule: Schedule
    kernel: Kernel
    level: MemoryLevel

    @property
    def running(self) -> bool:
        """Whether the host does not run as its library wrote it."""
        return bool(self.schedule.calls) or self.kernel.site is not None


class Graft:
    """What a host carries: all bindings by adapter, the schedule of the active ones, and how it computes.

    Schedule, kernel and level are those of everybody (``default``), but where a context has replaced them for itself.
    """

    def __init__(self) -> None:
        self.bindings: dict[str, list[Binding]] = {}
        self.selection: Scoped[Selection] | None = None
        """The choice of adapters that decides on the schedule."""
        self.kernel = Scoped(Kernel("auto", None))
        self.level: Scoped[MemoryLevel] = Scoped("standard")
        self.default: State | None = None
        """How the host runs for everybody; None where that has to be put together anew."""
        self.borrowed = 0
        """How many contexts compute in another way here."""
        self.rooted = False
        """Whether the host is a container with the tree of adapters among its children."""
        self.settled = False
        """Whether the host is a batch norm of a frozen base: it uses its running statistics, and never moves them."""
        self.tap = Tap()
        self.switched: list[tuple[str, Any, Graft]] = []
        """Attributes of the host and their values while another host, which it calls only then, is running."""
        self.stand_in: Forward | None = None
        """A forward in place of that of the host's class: of merged plain numbers, or one that a tracer watches."""
        self.originals: dict[str, Tensor] = {}
        """The base's parameters, while adapters are merged into them."""
        self.first: Callable[..., Any] | None = None
        """What runs the model's next pass, and watches it; the host is the whole model."""
        self.called = False
        """Whether the host has ever run with active edits."""
        self.passed_over = False
        """Whether the first pass ran the module around the host and not the host."""
        self.exchanged = ""
        """What has been put in the host's place since injection, in words; empty while it stands there."""
        self.successors: list[nn.Module] = []
        """The modules that were put there, and refuse to run while edits here should."""
        self.replaces: list[Graft] = []
        """What the hosts carry in whose place this module was put."""

    def everybody(self) -> State:
        """Return how the host runs where no context has replaced anything."""
        if self.default is None:
            schedules = {} if self.selection is None else self.selection.default.schedules
            self.default = State(schedules.get(self, EMPTY), self.kernel.default, self.level.default)
        return self.default

    def now(self) -> State:
        """Return how the host runs here and now."""
        replaced = replacements()
        default = self.default or self.everybody()
        if replaced is None:
            return default
        schedule = default.schedule
        if self.selection is not None and self.selection in replaced:
            schedule = replaced[self.selection].schedules.get(self, EMPTY)
        return State(schedule, self.kernel.value, self.level.value)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The active edits at this host, in order."""
        return self.now().schedule.calls

    @property
    def tapped(self) -> bool:
        """Whether an active edit elsewhere reads what this host sees."""
        return self.now().schedule.tapped

    @property
    def inner(self) -> Forward | None:
        """The forward that the host runs below its edits; None for that of its class."""
        return self._inner(self.now())

    def _inner(self, state: State) -> Forward | None:
        site = state.kernel.site
        by_kernel = None if site is None or site.carrier is None else site.carrier[1]
        return self.stand_in or state.schedule.carry or by_kernel

    @property
    def needed(self) -> bool:
        """Whether the host has to carry this."""
        changed = self.kernel.default.site is not None or self.level.default != "standard"
        kept = bool(self.bindings or self.switched or self.replaces) or self.rooted or self.settled
        return kept or changed or self.borrowed > 0 or self.first is not None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "default": None, "borrowed": 0}

    def run(self, host: nn.Module, forward: Forward, state: State, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute the host's output with its active edits."""
        self.called = True
        for other in self.replaces:
            for name in {} if other.selection is None else other.selection.value.active:
                other.check_present(name)
        schedule, site, forward = state.schedule, state.kernel.site, self._inner(state) or forward
        if schedule.tapped:
            self.tap.seen.value = args[0]
        for call in schedule.inputs:
            args, kwargs = _enter(call, args, kwargs)
        updates = [] if schedule.parameters else updates_of(host, forward, args[0], schedule.outputs)
        if updates:
            y = computed(host, forward, args[0], updates)
        elif schedule.attentions or site is not None:
            with Attending(schedule.attentions, state.kernel.backend, site, args[0]):
                y = self._compute(host, forward, args, kwargs)
        else:
            y = self._compute(host, forward, args, kwargs)
        in_place = forward is nn.Linear.forward and not torch.is_grad_enabled() and y.is_contiguous()
        for call in schedule.outputs[len(updates) :]:
            y = _leave(call, args[0], y, in_place=in_place)
        for tap in schedule.taps:
            tap.seen.value = tap.made.value = None
        if schedule.tapped:
            self.tap.made.value = y
        return y

    def check_present(self, name: str) -> None:
        """Raise a ValueError where an adapter has edits here, and the host has been exchanged since they were made."""
        bindings = self.bindings.get(name)
        if self.exchanged and bindings and not self.originals:  # merged ones are in what stands there
            raise ValueError(
                f"{bindings[0].site.host_path}: {self.exchanged} stands where adapter {name!r} has edits "
                f"({plain_class(bindings[0].host).__name__}), which would do nothing. Exchange modules before adapt; "
                f"now call adapters.remove({name!r}) and adapt again"
            )

    def brief(self, host: nn.Module, state: State, x: Tensor) -> Tensor | None:
        """Return the output of a plain linear layer with one plain update, without a graph; None for all else."""
        call = state.schedule.brief
        if call is None or self.stand_in is not None or state.kernel.site is not None or self.switched:
            return None
        self.called = True
        return briefly(host, x, call)

    def project(self, host: nn.Module, x: Tensor) -> Tensor:
        """Return ``in_proj_weight x + in_proj_bias`` with the edits on these rows: what a carrier calls."""
        self.called = True
        schedule = self.now().schedule
        for call in schedule.projected:
            (x,), _ = _enter(call, (x,), {})
        projections = schedule.projections
        updates = projection_updates(host, x, projections)
        y = projected(host, x, updates)
        for call in projections[len(updates) :]:
            y = _leave(call, x, y)
        return y

    def _compute(self, host: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        attributes = self._attributes(host)
        routed = [call for call in self.now().schedule.parameters if call.route is not None]
        if not routed:
            return replaced(host, self.mixed(host), forward, args, kwargs, attributes)
        y = forward(host, *args, **kwargs)
        for call in routed:
            assert call.route is not None
            rows = call.route.rows(len(args[0]))
            y = y.index_copy(0, rows, replaced(host, _tensors(call), forward, (args[0][rows], *args[1:]), kwargs))
        return y

    def _attributes(self, host: nn.Module) -> dict[str, Any]:
        """Return the host's attributes that have other values just now."""
        site = self.now().kernel.site
        attributes = {name: value for name, value, other in self.switched if other.now().running}
        moving = any(_replacing(call).moves_statistics for call in self.now().schedule.parameters)
        if self.settled and host.training and not moving:
            attributes["training"] = False
        return attributes | {name: value for _, name, value in (() if site is None else site.switches)}

    def mixed(self, host: nn.Module) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own: base + sum of weight * (copy - base)."""
        parameters = self.now().schedule.parameters
        if len(parameters) == 1 and parameters[0].weight == 1.0:
            return _tensors(parameters[0])
        mixed: dict[str, Tensor] = {}
        for call in parameters:
            for name, value in _tensors(call).items():
                base = tensor_of(host, name)
                mixed[name] = mixed.get(name, base) + call.weight * (value - base)
        return mixed


def _tensors(call: Call) -> dict[str, Tensor]:
    return _replacing(call).parameters_of(call.binding)


def _replacing(call: Call) -> ReplacesParameters:
    edit = call.binding.edit
    assert isinstance(edit, ReplacesParameters)
    return edit


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


def _leave(call: Call, x: Tensor, y: Any, *, in_place: bool = False) -> Any:
    """Return the output after a call; ``in_place``: nobody else reads it, and it may be written into."""
    binding, edit = call.binding, call.binding.edit
    if isinstance(y, tuple):
        return (_leave(call, x, y[0]), *y[1:])
    if binding.tap is not None:
        x = call.tapped()
    part = y if binding.rows is None else take(y, binding.rows, -1)
    if isinstance(call, Together):
        assert isinstance(edit, StacksOutput)
        new = edit.routed_output(x, part, call, in_place=in_place and not isinstance(binding.rows, Interleaved))
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


_GENERATED: dict[type[nn.Module], type[nn.Module]] = {}


def grafted_class(cls: type[nn.Module]) -> type[nn.Module]:
    """Return the generated subclass of a module class; the same one each time."""
    if cls not in _GENERATED:
        entries = {name: _entry(name, getattr(cls, name)) for name in ENTRIES if hasattr(cls, name)}
        body = {
            "forward": _forward(cls),
            "__reduce_ex__": _reduce,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,  # libraries write names down, and look classes up by them
            "__doc__": cls.__doc__,
            PLAIN: cls,
        }
        _GENERATED[cls] = type(cls.__name__, (cls,), body | entries | container_methods(cls))
    return _GENERATED[cls]


def _forward(cls: type[nn.Module]) -> Forward:
    """Return the forward of a grafted class, with the globals of the original: torch.fx looks at them for functions."""
    original: Forward = cls.forward
    plain = original is nn.Linear.forward
    first = next(islice(inspect.signature(original).parameters, 1, None), "")

    def run(self: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        carried: Graft = self.__dict__["_graft"]
        if carried.first is not None and not torch.compiler.is_compiling():
            return carried.first(self, *args, **kwargs)
        state = carried.now()
        if torch.is_grad_enabled():
            if not torch.compiler.is_compiling():
                keep_for_recomputation()
        elif plain and args and (y := carried.brief(self, state, args[0])) is not None:
            return y
        with recomputing(state.level, None if state.level == "standard" else output_layer(self, kwargs)):
            if state.running or state.schedule.tapped or carried.switched or carried.settled or carried.replaces:
                if not args:
                    args = (kwargs.pop(first, None),)
                try:
                    return carried.run(self, original, state, args, kwargs)
                except RuntimeError as error:
                    _check_placed(state.schedule, error)
                    raise
            return (carried.stand_in or original)(self, *args, **kwargs)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return run(self, args, kwargs)

    function = FunctionType(
        forward.__code__, getattr(original, "__globals__", globals()), "forward", None, forward.__closure__
    )
    return wraps(original)(function)  # its signature: transformers' Trainer keeps the columns that a forward names


def _entry(name: str, original: Forward) -> Forward:
    @wraps(original)
    def entry(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        carried: Graft = self.__dict__["_graft"]
        state = carried.now()
        for call in state.schedule.features if name == FEATURES else ():
            assert isinstance(call.binding.edit, RefusesFeatures)
            call.binding.edit.features()
        with recomputing(state.level):
            if TWIN in self.__dict__:
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


def _check_placed(schedule: Schedule, error: RuntimeError) -> None:
    """Raise a ValueError where an error comes from edits whose tensors have been taken away from them."""
    edits = (call.binding.edit for call in schedule.calls)
    if any(tensor.is_meta for edit in edits for tensor in edit.parameters()):
        raise ValueError(
            "the adapter's weights are on the meta device: accelerate's offloading moved them away, and brings only "
            "the library's own back. Offload a model without adapters (adapters.merge_and_unload() makes one)"
        ) from error


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
    """Give the host its own class back; one that was made of the grafted class since (parametrised) stays, without."""
    host.__class__ = _without_graft(type(host))
    del host.__dict__["_graft"]


def _without_graft(cls: type) -> type:
    if PLAIN in cls.__dict__ or not hasattr(cls, PLAIN):
        plain: type = cls.__dict__.get(PLAIN, cls)
        return plain
    body = {name: value for name, value in cls.__dict__.items() if name not in ("__dict__", "__weakref__")}
    return type(cls.__name__, tuple(map(_without_graft, cls.__bases__)), body)
