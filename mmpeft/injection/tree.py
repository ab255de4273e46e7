"""The subtree ``model.mmpeft``: every weight of every adapter, and nothing else of ours in the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from mmpeft.injection.edits.base import Binding, Call, Edit, Route
from mmpeft.injection.graft import check_forward, graft, ungraft
from mmpeft.injection.sites import Site
from mmpeft.injection.weights import Weight, weight_at

if TYPE_CHECKING:
    from mmpeft.methods.base import Method


class Node(nn.Module):
    """A named place in the subtree; holds nodes and edits."""

    def at(self, path: str) -> Node:
        """Return the node at a dotted path below this one, made on the way."""
        node = self
        for part in path.split(".") if path else ():
            node = node._modules.setdefault(part, Node())  # type: ignore[assignment]
        return node


class Adapter(Node):
    """One adapter's weights in one module, with the methods that made it and every place it is bound to.

    ``words`` are those that the module's tokenizer, if it has one, has to learn; ``lacking`` says why methods that have
    their sites in other modules have none in this.
    """

    def __init__(self, methods: list[Method]) -> None:
        super().__init__()
        self.methods = methods
        self.words: tuple[str, ...] = ()
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
            bindings.append(Binding(edit=edit, host=module, point="carrier", site=site, carry=carry))
        for binding in bindings:
            check_forward(binding.host)
            self.bindings.append(binding)

    def hosts(self) -> Iterator[nn.Module]:
        """Yield each host and tap of this adapter once."""
        modules = (module for binding in self.bindings for module in (binding.host, binding.tap))
        yield from {id(module): module for module in modules if module is not None}.values()


class Tree(nn.Module):
    """The root of all adapters in one module, with what is active and the towers that this touches ("" for unknown).

    Its forward is the identity: a child of an ``nn.Sequential`` is executed as a layer. A state dict without adapters
    (a published checkpoint of the base) loads strictly.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.active: dict[str, Weight] = {}
        self.touched: frozenset[str] = frozenset()
        self.routes: dict[str, Route] = {}
        self.merged = False
        self.unfrozen = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.register_load_state_dict_post_hook(_forgive)

    def forward(self, x: Any) -> Any:
        """Return x."""
        return x

    def __setattr__(self, name: str, value: Any) -> None:
        # Not torch's own, which refuses a value where an adapter is called "active" or "training".
        object.__setattr__(self, name, value)

    def active_edits(self) -> Iterator[Edit]:
        """Yield the edits of the active adapters, in order."""
        yield from (edit for name in self.active for _, edit, _ in self.adapters[name].places)

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by name, in order of their making."""
        return self._modules  # type: ignore[return-value]

    def attach(self, name: str, adapter: Adapter) -> None:
        """Bind an adapter's edits to their hosts; nothing runs until it is active."""
        self._modules[name] = adapter
        for binding in adapter.bindings:
            graft(binding.host).attach(name, binding)
            if binding.tap is not None:
                graft(binding.tap).bindings.setdefault(name, [])
                graft(binding.tap).tapped_by.add(name)

    def detach(self, name: str) -> None:
        """Unbind an adapter; a host that carries nothing any more gets its own class back."""
        adapter = self.adapters[name]
        for host in adapter.hosts():
            own = graft(host)
            own.bindings.pop(name)
            own.tapped_by.discard(name)
            if not own.needed:
                ungraft(host)
        del self._modules[name]

    def activate(self, weights: Mapping[str, Weight], routes: dict[str, Route] | None = None) -> None:
        """Make exactly these adapters active, in this order; ``routes`` limits them to samples of the batch."""
        changed = {id(host): host for name in self.active | dict(weights) for host in self.adapters[name].hosts()}
        self.active, self.routes = dict(weights), dict(routes or {})
        bindings = (binding for name in weights for binding in self.adapters[name].bindings)
        self.touched = frozenset(binding.site.tower for binding in bindings)
        applied = {} if self.merged else self.active
        for host in changed.values():
            own = graft(host)
            own.activate(_calls(own.bindings, applied, self.routes))
            own.tapped = not own.tapped_by.isdisjoint(applied)
        for own in sorted((graft(host) for host in changed.values()), key=lambda own: own.running):
            own.switch()


def _calls(
    bindings: Mapping[str, list[Binding]], weights: Mapping[str, Weight], routes: Mapping[str, Route]
) -> list[Call]:
    """The calls of one host in order, each with its place among the inserted tokens.

    ``entering`` tokens of earlier adapters are in front at the host's input, ``staying`` ones at its output too. Of
    adapters that serve different samples the first one's tokens make room, and the others' take that place.
    """
    calls: list[Call] = []
    entering = staying = 0
    room: tuple[int, int] | None = None
    for name, weight in weights.items():
        own = bindings.get(name, [])
        joins = room is not None and name in routes
        here, left = room if joins and room else (entering, staying)
        if name in routes and room is None and any(binding.edit.count for binding in own):
            room = here, left
        for binding in own:
            count = binding.edit.count
            left += {"input": count, "output": -count}.get(binding.point, 0)
            if not (joins and count and binding.point == "output"):
                place = here if binding.point == "input" else left
                route = routes.get(name) if joins or not count else None
                calls.append(Call(binding, weight_at(weight, binding.site), route, place, joins))
            here += count if binding.point == "input" else 0
        if not joins:
            entering, staying = here, left
    return calls


def _forgive(tree: nn.Module, keys: Any) -> None:
    """Forget missing adapter keys when the loaded state dict held none at all."""
    own = [key for key in keys.missing_keys if key.startswith("mmpeft.") or ".mmpeft." in key]
    if len(own) == len(tree.state_dict()):
        keys.missing_keys[:] = [key for key in keys.missing_keys if key not in own]
