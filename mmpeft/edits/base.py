"""What every edit is: weights in the adapter's subtree, and a formula bound to one or more hosts.

`Edit` says where it attaches (``bind``) and what of it is saved (``kept``). What it does there is said by the abilities
that a class inherits: it changes the host's output or input, replaces parameters, adds keys and values ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor, nn

from mmpeft.anatomies.hosts import graft_of
from mmpeft.anatomies.sites import LinearSite, Site
from mmpeft.edits.gate import Gate
from mmpeft.edits.references import Condition
from mmpeft.edits.routes import Share
from mmpeft.kernels.attention import Extra
from mmpeft.kernels.rows import Rows
from mmpeft.kernels.updates import Update

Fold = tuple[Tensor, Tensor | None]
"""A weight (out, in) and a bias (out)."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""The positional and the named arguments of a host's forward."""


class Point(StrEnum):
    """Where in its host's forward an edit runs. Each point asks for one ability of the edit."""

    PARAMETERS = "parameters"
    """Other tensors stand in for the host's parameters while it runs (`ReplacesParameters`)."""
    INPUT = "input"
    """In front of the forward, on its arguments (`ChangesInput`)."""
    OUTPUT = "output"
    """Behind the forward, on what it returned (`ChangesOutput`)."""
    PROJECTED = "projected"
    """In front of the projection by ``in_proj_weight`` inside an attention (`ChangesInput`)."""
    PROJECTION = "projection"
    """Behind that projection (`ChangesOutput`)."""
    ATTENTION = "attention"
    """In the attention kernel that the host calls (`AddsKeys`)."""
    CARRIER = "carrier"
    """The host reads an edited layer's weights itself: it runs a forward that calls the layer instead. No ability."""
    FEATURES = "features"
    """Where a model returns features from between its blocks (`RefusesFeatures`)."""


@dataclass(eq=False, kw_only=True)
class Binding:
    """One edit at one host: at which point of its forward, on which rows of its output, reading which input.

    ``tap`` is a module whose input the edit reads in place of the host's. ``index`` tells several bindings of one edit
    apart. ``names`` are the host's parameters that the edit replaces, with the edit's own names for them; ``carry`` is
    the forward that a carrier runs instead of its own.
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

    def modules(self) -> list[nn.Module]:
        """Return the host, the tap, and modules that call the host only with a switch."""
        taps = [] if self.tap is None else [self.tap]
        return [self.host, *taps, *(module for module, *_ in self.site.switches)]


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
        assert self.binding.tap is not None
        seen: Tensor | None = graft_of(self.binding.tap).tap.seen.value
        if seen is None:
            raise ValueError(f"{self.binding.site.path}: the model was entered behind the place that this edit reads")
        return seen

    def tapped_output(self) -> Any:
        """Return what the module at the binding's tap made in this forward pass."""
        assert self.binding.tap is not None
        return graft_of(self.binding.tap).tap.made.value


class Edit(nn.Module):
    """One reversible change at one site.

    ``count`` is the number of tokens that an edit adds to the sequence (`InsertsTokens`). One that needs more than the
    model's own input ``takes`` it as a condition; one whose change is no difference of tensors ``weighs_itself``; one
    whose host is given no tensor in front ``routes_itself``. ``rates`` are factors on the learning rate, by parameter,
    and an ``input_gate`` says by what the edit reads how much of its change is made.
    """

    count = 0
    takes: Condition | None = None
    weighs_itself = False
    routes_itself = False
    rates: Mapping[str, float] = {}

    def __init__(self) -> None:
        super().__init__()
        self.input_gate: Gate | None = None

    def bind(self, site: Site) -> Iterable[Binding]:
        """Return where this edit attaches; by default to the site's output, see ``bind_output``."""
        return self.bind_output(site)

    def bind_output(self, site: Site) -> list[Binding]:
        """Bind to what the site's host returns; at a linear site to the site's rows of it.

        Where the host is an attention that projects by ``in_proj_weight``, they are rows of that projection.
        """
        rows = site.rows if isinstance(site, LinearSite) else None
        point = Point.PROJECTION if _inside(site) else Point.OUTPUT
        return [Binding(edit=self, host=site.host, point=point, site=site, rows=rows)]

    def bind_input(self, site: Site) -> list[Binding]:
        """Bind to what the site's host is given, or its projection by ``in_proj_weight``; rows make no difference."""
        point = Point.PROJECTED if _inside(site) else Point.INPUT
        return [Binding(edit=self, host=site.host, point=point, site=site)]

    def kept(self) -> dict[str, Tensor]:
        """Return the tensors that are saved: by default all of the edit's."""
        return dict(self.state_dict())


def _inside(site: Site) -> bool:
    """Whether a site is a projection inside the forward of a host that computes more."""
    return isinstance(site, LinearSite) and site.weight != "weight"


class ChangesOutput(Edit):
    """Ability: it makes another output of the host's output."""

    def output(self, x: Tensor, y: Any, call: Call) -> Any:
        """Return the host's output after this edit, given its input ``x`` and its output so far ``y``."""
        raise NotImplementedError

    def gated(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Return the output after this edit, as far as its gate is open: ``y + g (output(x, y) - y)``."""
        new: Tensor = self.output(x, y, call)
        return new if self.input_gate is None else y + self.input_gate(self.read(x, y, call)) * (new - y)

    def read(self, x: Tensor, y: Tensor, call: Call) -> Tensor:
        """Return what of the host's input ``x`` and output ``y`` the edit reads, and its gate with it."""
        return x


class ChangesInput(Edit):
    """Ability: it makes other arguments of the host's arguments."""

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call) -> Arguments:
        """Return the host's arguments after this edit."""
        raise NotImplementedError


class InsertsTokens(ChangesInput):
    """Ability: it adds ``count`` tokens to a sequence, before each of its ``layers``."""

    layers: tuple[int, ...]


class ReplacesParameters(Edit):
    """Ability: the host computes with other tensors in the place of some of its parameters."""

    @property
    def moves_statistics(self) -> bool:
        """Whether its host, a batch norm, takes each batch's statistics in training, and moves the running ones."""
        return False

    def parameters_of(self, binding: Binding) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own of the same names."""
        raise NotImplementedError


class AddsKeys(Edit):
    """Ability: every query of an attention sees more keys and values than the model's own."""

    def extra(self, x: Tensor, call: Call) -> Extra:
        """Return keys and values for queries x (batch, heads, queries, head width) to see besides their own."""
        raise NotImplementedError


class StartsFromWords(Edit):
    """Ability: it may start as what the model's own attention makes of some words."""

    words: tuple[int, ...] | None = None
    """Their token ids; None where it starts otherwise."""

    def start_as(self, keys: Tensor, values: Tensor) -> None:
        """Start as keys and values (1, heads, tokens, width) that the model's own attention was seen to have."""
        raise NotImplementedError


class RefusesFeatures(Edit):
    """Ability: while it is active, features from between the blocks are not what a caller takes them for."""

    def features(self) -> None:
        """Raise a ValueError that says why."""
        raise NotImplementedError


class Merges(Edit):
    """Ability: it can be written into its host's weight. ``shifts`` says that this takes a bias, too."""

    shifts = False

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """Return weight (out, in) and bias (out) with this edit in them, in the precision of the arguments.

        Both may hold earlier edits; ``host`` has the base's own.
        """
        raise NotImplementedError


class UpdatesWeight(ChangesOutput):
    """Ability: its change amounts to a low-rank update ``s B A`` of the host's weight, made by one fused function."""

    def update(self, binding: Binding) -> Update | None:
        """Return the update that ``output`` amounts to just now; None where it is none in this state."""
        raise NotImplementedError

    def fixed_factors(self) -> Mapping[str, tuple[Tensor, float]]:
        """Return A and s of each ``s B A`` of which only B is trained, by B's name."""
        return {}
