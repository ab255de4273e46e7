"""The subtree ``model.mmpeft``: every weight of every adapter, and nothing else of ours in the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from torch import nn

from mmpeft.anatomies.sites import Site
from mmpeft.edits.base import Binding, Call, Edit, InsertsTokens, Point
from mmpeft.edits.routes import Route, RoutingTable, Served, Share
from mmpeft.edits.weights import Weight, weight_at
from mmpeft.injection.graft import Graft, Selection, check_forward, graft, ungraft
from mmpeft.injection.routing import together
from mmpeft.injection.schedule import Schedule
from mmpeft.kernels.scoped import Scoped

if TYPE_CHECKING:
    from mmpeft.methods.base import Method


class Node(nn.Module):
    """A named place in the subtree; holds nodes and edits."""

    def at(self, path: str) -> Node:
        """Return the node at a dotted path below this one, made on the way."""
        node = self
        for part in path.split(".") if path else ():
            inner = node._modules.setdefault(part, Node())
            assert isinstance(inner, Node)
            node = inner
        return node


class Demands(NamedTuple):
    """What limits the routing of an adapter to single samples of a batch."""

    tokens: tuple[object, ...]
    """The tokens that it inserts, by layers: samples with other numbers of tokens don't fit into one batch."""
    condition: bool
    """Whether it takes a condition, which is given for a whole batch."""
    unfrozen: str | None
    """A module with children whose parameters it replaces, by name: they can't be replaced for some samples."""


class Adapter(Node):
    """One adapter's weights in one module, with the methods that made it and every place it is bound to.

    ``words`` are those that the module's tokenizer, if it has one, has to learn; ``lacking`` says why methods that have
    their sites in other modules have none in this; ``directory`` is where it was loaded from, or saved last.
    """

    def __init__(self, methods: list[Method]) -> None:
        super().__init__()
        self.methods = methods
        self.words: tuple[str, ...] = ()
        self.directory: Path | None = None
        self.lacking: list[str] = []
        self.places: list[tuple[Site, Edit, str]] = []
        self.bindings: list[Binding] = []

    def place(self, site: Site, edit: Edit, key: str) -> None:
        """Put an edit at ``<site path>.<key>``; a second one of the same key gets a number."""
        node, number = self.at(site.path), 2
        name = key
        while name in node._modules:
            name, number = f"{key}_{number}", number + 1
        node._modules[name] = edit
        self.places.append((site, edit, f"{site.path}.{name}".lstrip(".")))
        bindings = [*edit.bind(site)]
        if site.carrier is not None:
            module, carry = site.carrier
            bindings.append(Binding(edit=edit, host=module, point=Point.CARRIER, site=site, carry=carry))
        for binding in bindings:
            check_forward(binding.host)
            self.bindings.append(binding)

    @cached_property
    def demands(self) -> Demands:
        """What decides whether it can serve single samples of a batch."""
        edits = [edit for _, edit, _ in self.places]
        unfrozen = (
            binding
            for binding in self.bindings
            if binding.point == Point.PARAMETERS and any(True for _ in binding.host.children())
        )
        return Demands(
            tokens=tuple((edit.layers, edit.count) for edit in edits if isinstance(edit, InsertsTokens)),
            condition=any(edit.takes is not None for edit in edits),
            unfrozen=next((binding.site.name for binding in unfrozen), None),
        )

    def check_present(self, name: str) -> None:
        """Raise a ValueError where a module with edits of this adapter, of that name, has been exchanged since."""
        for host in self.hosts():
            graft(host).check_present(name)

    def hosts(self) -> Iterator[nn.Module]:
        """Yield each module that something of this adapter is at, once: hosts, taps and those with a switch."""
        yield from {id(module): module for binding in self.bindings for module in binding.modules()}.values()


class LastSelections(dict[bool, tuple[object, Selection]]):
    """A cache of the last selection with routes (True) and of the last without (False), each with what it is for.

    Neither copied nor pickled: a copy of the model starts without.
    """

    def __reduce__(self) -> tuple[type[LastSelections], tuple[()]]:
        return LastSelections, ()


class Tree(nn.Module):
    """The root of all adapters in one module, with what is active: for everybody, or in a context for itself.

    Its forward is the identity: a child of an ``nn.Sequential`` is executed as a layer. A state dict without adapters
    (a published checkpoint of the base) loads strictly.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.selection = Scoped(Selection({}, {}, frozenset()))
        self.table = RoutingTable()
        self.known = LastSelections()
        self.merged = False
        self.unfrozen = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.register_load_state_dict_post_hook(_forgive)

    def forward(self, x: Any) -> Any:
        """Return x."""
        return x

    def __setattr__(self, name: str, value: Any) -> None:
        # Not torch's own, which refuses a value where an adapter is called "active" or "training".
        object.__setattr__(self, name, value)

    def __prepare_scriptable__(self) -> Tree:  # what torch.jit.script asks of each module
        """Raise a ValueError: TorchScript compiles the classes of modules, and knows no edits."""
        raise ValueError(
            "torch.jit.script: an adapted model can't be scripted: call adapters.merge_and_unload() first, or use "
            "torch.jit.trace, torch.export or torch.compile"
        )

    @property
    def active(self) -> Mapping[str, Weight]:
        """The adapters that are active here and now, in order, with their weights."""
        return self.selection.value.active

    @property
    def routes(self) -> Mapping[str, Route]:
        """The samples that each of them serves, where the batch is routed."""
        return self.table.value.routes

    @property
    def touched(self) -> frozenset[str]:
        """The towers that the active adapters touch ("" for unknown)."""
        return self.selection.value.towers

    def active_edits(self) -> Iterator[Edit]:
        """Yield the edits of the active adapters, in order."""
        yield from (edit for name in self.active for _, edit, _ in self.adapters[name].places)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by name, in order of their making."""
        return cast(dict[str, Adapter], self._modules)

    def attach(self, name: str, adapter: Adapter) -> None:
        """Bind an adapter's edits to their hosts; nothing runs until it is active."""
        self.known = LastSelections()
        self._modules[name] = adapter
        for binding in adapter.bindings:
            host = graft(binding.host)
            for carried in map(graft, binding.modules()):
                carried.selection = self.selection
                carried.bindings.setdefault(name, [])
            host.bindings[name].append(binding)
            if binding.tap is not None:
                graft(binding.tap).tap.readers.add(name)
            for module, attribute, value in binding.site.switches:
                graft(module).switched.append((attribute, value, host))

    def detach(self, name: str) -> None:
        """Unbind an adapter; a host that carries nothing any more gets its own class back."""
        adapter = self.adapters[name]
        self.known = LastSelections()
        for host in adapter.hosts():
            graft(host).bindings.pop(name)
            graft(host).tap.readers.discard(name)
        for host in adapter.hosts():
            carried = graft(host)
            carried.switched = [switch for switch in carried.switched if switch[2].bindings]
            for successor in [] if carried.bindings else carried.successors:
                _forget_replaced(successor, carried)
            if not carried.needed:
                ungraft(host)
        del self._modules[name]

    def activate(self, weights: Mapping[str, Weight]) -> None:
        """Make exactly these adapters active, in this order, for everybody."""
        before = self.selection.default
        self.selection.default = self._selected(dict(weights), {})
        if self.selection.default is not before:
            for carried in {**before.schedules, **self.selection.default.schedules}:
                carried.default = None

    def chosen(
        self, weights: Mapping[str, Weight], routes: Mapping[str, Route] | None = None
    ) -> dict[Scoped[Any], object]:
        """Return what to replace for exactly these adapters, in this order, to be active within a context.

        ``routes`` limits them to samples of the batch; in which order routed adapters are given makes no difference. Of
        both kinds the last selection is known, and only put in place: serving one batch after another costs what
        changes.
        """
        return {self.selection: self._selected(dict(weights), routes or {}), self.table: Served(routes or {})}

    def forget(self) -> None:
        """Let go of what is known of former adapters, and of their stacked weights."""
        self.known = LastSelections()

    def _selected(self, weights: dict[str, Weight], routes: Mapping[str, Route]) -> Selection:
        alone = len(routes) == 1 and all(len(served.samples) == served.batch for served in routes.values())
        routed = bool(routes) and not alone
        order = frozenset(weights) if routed else tuple(weights)
        key = order, {name: repr(weight) for name, weight in weights.items()}, self.merged
        known = self.known.get(routed)
        if known is None or known[0] != key:
            known = self.known[routed] = key, self._select(weights, routed)
        return known[1]

    def _select(self, weights: dict[str, Weight], routed: bool) -> Selection:
        adapters = [self.adapters[name] for name in weights]
        hosts = {id(host): host for adapter in adapters for host in adapter.hosts()}
        towers = frozenset(binding.site.tower for adapter in adapters for binding in adapter.bindings)
        applied = {} if self.merged else weights
        shares = {name: Share(self.table, name) for name in (weights if routed else ())}

        def scheduled(carried: Graft) -> Schedule:
            calls = _calls(carried.bindings, applied, shares)
            tapped = not carried.tap.readers.isdisjoint(applied)
            ordered = together(calls, self.table, len(shares)) if routed else [call for _, call in calls]
            return Schedule(ordered, tapped=tapped)

        return Selection(weights, {carried: scheduled(carried) for carried in map(graft, hosts.values())}, towers)


def _calls(
    bindings: Mapping[str, list[Binding]], weights: Mapping[str, Weight], routes: Mapping[str, Share]
) -> Iterable[tuple[str, Call]]:
    """The calls of one host in order, by adapter, each with its place among the inserted tokens.

    ``entering`` tokens of earlier adapters are in front at the host's input, ``staying`` ones at its output too. Of
    adapters that serve different samples the first one's tokens make room, and the others' take that place.
    """
    entering = staying = 0
    room: tuple[int, int] | None = None
    for name, weight in weights.items():
        bound = bindings.get(name, [])
        joins = room is not None and name in routes
        here, left = room if joins and room else (entering, staying)
        if name in routes and room is None and any(binding.edit.count for binding in bound):
            room = here, left
        for binding in bound:
            count = binding.edit.count
            left += {Point.INPUT: count, Point.OUTPUT: -count}.get(binding.point, 0)
            if not (joins and count and binding.point == Point.OUTPUT):
                offset = here if binding.point == Point.INPUT else left
                route = routes.get(name) if joins or not count else None
                yield name, Call(binding, weight_at(weight, binding.site), route, offset, joins)
            here += count if binding.point == Point.INPUT else 0
        if not joins:
            entering, staying = here, left


def _forget_replaced(module: nn.Module, carried: Graft) -> None:
    """Let a module run that was put in the place of a host, which has no edits any more."""
    successor = graft(module)
    successor.replaces = [other for other in successor.replaces if other is not carried]
    if not successor.needed:
        ungraft(module)


def _forgive(tree: nn.Module, keys: Any) -> None:
    """Forget missing adapter keys when the loaded state dict held none at all."""
    ours = [key for key in keys.missing_keys if key.startswith("mmpeft.") or ".mmpeft." in key]
    if len(ours) == len(tree.state_dict()):
        keys.missing_keys[:] = [key for key in keys.missing_keys if key not in ours]
