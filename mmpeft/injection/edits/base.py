"""What every edit is: weights in the adapter's subtree, and a formula bound to one or more hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmpeft.injection.edits.gate import Gate
from mmpeft.injection.sites import Site
from mmpeft.kernels.attention import Extra
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
    """The samples of a batch that an adapter serves: indices (n,) into ``batch`` samples."""

    samples: Tensor
    batch: int

    def rows(self, length: int) -> Tensor:
        """Indices into a leading dimension of ``length``, where each sample may have become several rows (windows)."""
        each, rest = divmod(length, self.batch)
        if rest:
            raise ValueError(f"route: {self.batch} names for a batch of {length}")
        if each == 1:
            return self.samples
        return (self.samples[:, None] * each + torch.arange(each, device=self.samples.device)).flatten()


@dataclass(frozen=True, eq=False)
class Call:
    """An active binding: with its mixing weight, its samples when routed, and its place among inserted tokens."""

    binding: Binding
    weight: float = 1.0
    route: Route | None = None
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
    number of tokens that an edit adds to the sequence. ``rates`` are factors on the learning rate, by parameter, and an
    ``input_gate`` says by what the edit reads how much of its change is made.
    """

    mergeable = False
    shifts = False
    count = 0
    takes: Condition | None = None
    weighs_itself = False
    routes_itself = False
    rates: Mapping[str, float] = {}

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

    def parameters_of(self, binding: Binding) -> dict[str, Tensor]:
        """Return the tensors that replace the host's own of the same names."""
        raise TypeError(f"{type(self).__name__} has no parameters")

    def extra(self, x: Tensor, call: Call) -> Extra:
        """Return keys and values for queries x (batch, heads, queries, head width) to see besides their own."""
        raise TypeError(f"{type(self).__name__} has no keys and values")

    def features(self) -> None:
        """Raise a ValueError: the model's intermediate features are not what the caller takes them for."""
        raise TypeError(f"{type(self).__name__} does not mind features")

    def kept(self) -> dict[str, Tensor]:
        """Return the tensors that are saved: by default the edit's own."""
        return dict(self.state_dict())

    def fold(self, weight: Tensor, bias: Tensor | None, host: nn.Module) -> Fold:
        """Return weight (out, in) and bias (out) with this edit in them, in the precision of the arguments.

        Both may hold earlier edits; ``host`` has the base's own.
        """
        raise TypeError(f"{type(self).__name__} can't be merged")
