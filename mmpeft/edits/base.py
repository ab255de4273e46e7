"""What every edit is: weights in the adapter's subtree, and a formula bound to one or more hosts."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmpeft.anatomies.sites import Site
from mmpeft.edits.gate import Gate
from mmpeft.kernels.attention import Extra
from mmpeft.kernels.routing import BatchLayout, Stack
from mmpeft.kernels.rows import Rows
from mmpeft.kernels.updates import Update

Point = Literal["parameters", "input", "output", "projected", "projection", "carrier", "features", "attention"]
Fold = tuple[Tensor, Tensor | None]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(eq=False, kw_only=True)
class Binding:
    """One edit at one host: at which point of its forward, on which rows of its output, reading which input.

    ``names`` are the host's parameters that the edit replaces, with the edit's own names for them; ``carry`` is the
    forward that a carrier runs instead of its own.
    """

    edit: Edit
    host: nn.Module
    point: Point
    site: Site
    rows: Rows | None = None
    tap: nn.Module | None = None
    index: int = 0
    names: Mapping[str, str] = field(default_factory=dict)
    carry: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class Route:
    """The samples of a batch that an adapter serves: indices into ``batch`` samples."""

    samples: tuple[int, ...]
    batch: int
    device: torch.device

    def rows(self, length: int) -> Tensor:
        """Indices into a leading dimension of ``length``, where each sample may have become several rows (windows)."""
        each, rest = divmod(length, self.batch)
        if rest:
            raise ValueError(f"route: {self.batch} names for a batch of {length}")
        samples = torch.tensor(self.samples, device=self.device)
        if each == 1:
            return samples
        return (samples[:, None] * each + torch.arange(each, device=self.device)).flatten()


@dataclass(frozen=True, eq=False)
class Call:
    """An active binding: with its mixing weight, its samples when routed, and its place among inserted tokens."""

    binding: Binding
    weight: float = 1.0
    route: Share | None = None
    offset: int = 0
    joins: bool = False

    def tapped(self) -> Tensor:
        """Return what the binding's tap saw in this forward pass."""
        seen = self.binding.tap._graft.seen  # type: ignore[union-attr]
        if seen is None:
            raise ValueError(f"{self.binding.site.path}: the model was entered behind the place that this edit reads")
        return seen  # type: ignore[return-value]

    def tapped_output(self) -> Any:
        """Return what the module at the binding's tap made in this forward pass."""
        return self.binding.tap._graft.made  # type: ignore[union-attr]


class Condition:
    """What an edit is given besides the model's own input, for as long as a context lasts; copies start without."""

    def __init__(self) -> None:
        self.value: Any = None

    def needed(self, what: str, name: str) -> Any:
        """Return the value; without one raise a ValueError that says how ``what``, here ``name``, is given."""
        if self.value is None:
            raise ValueError(f"{what}: call the model within adapters.given({{name: {name}}})")
        return self.value

    def __deepcopy__(self, memo: dict[int, Any]) -> Condition:
        return Condition()

    def __reduce__(self) -> tuple[type[Condition], tuple[()]]:
        return Condition, ()


class Edit(nn.Module):
    """One reversible change at one site.

    A subclass implements the points that its ``bind`` names: ``output(x, y, call)`` returns the new output,
    ``input(args, kwargs, call)`` the new arguments, ``parameters_of(binding)`` the tensors to compute with,
    ``features()`` raises where the edit spoils intermediate features, ``extra(x, call)`` the keys and values that
    queries x see besides their own. An edit that needs more than the model's own
    input ``takes`` it as a condition; one whose change is no difference of tensors ``weighs_itself``; one whose host is
    given no tensor in front ``routes_itself``. One that can be
    written into the base's weights implements ``fold``; ``shifts`` says that this takes a bias. ``count`` is the
    number of tokens that an edit adds to the sequence. ``words`` are token ids whose own keys and values at its
    attention site the edit is to start as (``start_as``). ``rates`` are factors on the learning rate, by parameter,
    and an ``input_gate`` says by what the edit reads how much of its change is made.

    Edits that are ``alike`` and serve different samples of one batch are computed together, from ``stacked`` weights:
    such an edit implements ``routed_output``, ``routed_input`` or ``routed_extra`` too.
    """

    mergeable = False
    shifts = False
    count = 0
    takes: Condition | None = None
    weighs_itself = False
    routes_itself = False
    rates: Mapping[str, float] = {}
    words: tuple[int, ...] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.input_gate: Gate | None = None

    def bind(self, site: Site) -> Iterable[Binding]:
        """Return where this edit attaches; by default to the output of the site's host."""
        return [Binding(edit=self, host=site.host, point="output", site=site)]

    def output(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Return the host's output after this edit, given its input ``x`` and its output so far ``y``."""
        raise TypeError(f"{type(self).__name__} has no output")

    def gated(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Return the output after this edit, as far as its gate is open: ``y + g (output(x, y) - y)``."""
        new = self.output(x, y, call)
        return new if self.input_gate is None else y + self.input_gate(self.read(x, y)) * (new - y)

    def read(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what of the host's input ``x`` and output ``y`` the edit reads, and its gate with it."""
        return x

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Return the host's arguments after this edit."""
        raise TypeError(f"{type(self).__name__} has no input")

    def update(self, binding: Binding) -> Update | None:
        """Return the low-rank update that ``output`` amounts to just now, if it is one: its host computes it itself."""
        return None

    def fixed_factors(self) -> Mapping[str, tuple[Tensor, float]]:
        """Return A and s of each ``s B A`` of which only B is trained, by B's name."""
        return {}

    def parameters_of(self, binding: Binding) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own of the same names."""
        raise TypeError(f"{type(self).__name__} has no parameters")

    def extra(self, x: Tensor, call: Call) -> Extra:
        """Return keys and values for queries x (batch, heads, queries, head width) to see besides their own."""
        raise TypeError(f"{type(self).__name__} has no keys and values")

    def features(self) -> None:
        """Raise a ValueError: the model's intermediate features are not what the caller takes them for."""
        raise TypeError(f"{type(self).__name__} does not mind features")

    def start_as(self, keys: Tensor, values: Tensor) -> None:
        """Start as keys and values (1, heads, tokens, width) that the model's own attention was seen to have."""
        raise TypeError(f"{type(self).__name__} starts from no words")

    def kept(self) -> dict[str, Tensor]:
        """Return the tensors that are saved: by default the edit's own."""
        return dict(self.state_dict())

    def alike(self) -> Hashable:
        """Return what edits of this class must have in common to be computed together; None: they can't be."""
        return None

    def sources(self) -> Iterable[nn.Module]:
        """Return the modules whose tensors the stacked weights are made of: by default the edit and all inside."""
        return self.modules() if self._modules else (self,)

    @staticmethod
    def stacked(edits: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the weights of edits that are alike, each (edits, ...)."""
        raise TypeError("these edits are not computed together")

    def routed_output(self, x: Tensor, y: Tensor, call: Together, *, own: bool) -> Tensor:
        """Return the host's output after the edits of a call; with ``own`` it may be written into ``y``."""
        raise TypeError(f"{type(self).__name__} has no routed output")

    def routed_input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Together) -> Arguments:
        """Return the host's arguments after the edits of a call."""
        raise TypeError(f"{type(self).__name__} has no routed input")

    def routed_extra(self, query: Tensor, call: Together) -> Extra:
        """Return the keys and values of the edits of a call, for its samples."""
        raise TypeError(f"{type(self).__name__} has no routed keys and values")

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """Return weight (out, in) and bias (out) with this edit in them, in the precision of the arguments.

        Both may hold earlier edits; ``host`` has the base's own.
        """
        raise TypeError(f"{type(self).__name__} can't be merged")


class RoutingTable:
    """The samples that each adapter serves just now; calls hold on to it, and each ``adapters.route`` fills it anew."""

    def __init__(self) -> None:
        self.routes: Mapping[str, Route] = {}
        self._layouts: dict[tuple[str, ...], BatchLayout] = {}

    def serve(self, routes: Mapping[str, Route]) -> None:
        """Take the routes by adapter."""
        self.routes, self._layouts = routes, {}

    def layout(self, names: tuple[str, ...]) -> BatchLayout:
        """Return how the samples of these adapters lie in the batch."""
        if names not in self._layouts:
            routes = [self.routes[name] for name in names]
            self._layouts[names] = BatchLayout([route.samples for route in routes], routes[0].batch, routes[0].device)
        return self._layouts[names]


@dataclass(frozen=True)
class Share:
    """The part of an adapter in what is served."""

    serving: RoutingTable
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
    serving: RoutingTable
    weights: Stacked

    @property
    def layout(self) -> BatchLayout:
        """Which of the adapters serves which samples."""
        return self.serving.layout(self.names)

    def stack(self, dtype: torch.dtype) -> Stack:
        """Return the adapters' weights in a precision."""
        return self.weights.of(dtype, self.serving.routes)
