"""The subtree ``model.mmpeft``: every weight of every adapter, and nothing else of ours in the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from mmpeft.injection.edits.base import Binding, Edit
from mmpeft.injection.graft import Call, Route, graft, ungraft
from mmpeft.injection.sites import Site

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
    """One adapter's weights in one module, with the methods that made it and every place it is bound to."""

    def __init__(self, methods: list[Method]) -> None:
        super().__init__()
        self.methods = methods
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
        self.bindings.extend(edit.bind(site))

    def hosts(self) -> Iterator[nn.Module]:
        """Yield each host and tap of this adapter once."""
        modules = (module for binding in self.bindings for module in (binding.host, binding.tap))
        yield from {id(module): module for module in modules if module is not None}.values()


class Tree(nn.Module):
    """The root of all adapters in one module, with what is active.

    Its forward is the identity: a child of an ``nn.Sequential`` is executed as a layer. A state dict without adapters
    (a published checkpoint of the base) loads strictly.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.active: dict[str, float] = {}
        self.merged = False
        self.unfrozen = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.register_load_state_dict_post_hook(_forgive)

    def forward(self, x: Any) -> Any:
        """Return x."""
        return x

    @property
    def adapters(self) -> dict[str, Adapter]:
        """The adapters by name, in order of their making."""
        return self._modules  # type: ignore[return-value]

    def attach(self, name: str, adapter: Adapter) -> None:
        """Bind an adapter's edits to their hosts; nothing runs until it is active."""
        self._modules[name] = adapter
        for binding in adapter.bindings:
            graft(binding.host).bindings.setdefault(name, []).append(binding)
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
            if not own.bindings:
                ungraft(host)
        del self._modules[name]

    def activate(self, weights: dict[str, float], routes: dict[str, Route] | None = None) -> None:
        """Make exactly these adapters active, in this order; ``routes`` limits them to samples of the batch."""
        changed = {id(host): host for name in self.active | weights for host in self.adapters[name].hosts()}
        self.active = dict(weights)
        for host in changed.values():
            self._refresh(host, {} if self.merged else weights, routes or {})

    def _refresh(self, host: nn.Module, weights: dict[str, float], routes: dict[str, Route]) -> None:
        own = graft(host)
        calls: list[Call] = []
        offset, shared = 0, -1
        for name, weight in weights.items():
            for binding in own.bindings.get(name, ()):
                count = getattr(binding.edit, "count", 0)
                joins = count > 0 and name in routes and shared >= 0
                calls.append(Call(binding, weight, routes.get(name), shared if joins else offset, joins))
                shared = offset if count and name in routes and shared < 0 else shared
                offset += count if binding.point == "input" and not joins else 0
        own.activate([call for call in calls if not (call.joins and call.binding.point == "output")])
        own.tapped = not own.tapped_by.isdisjoint(weights)
        for module, attribute, on, off in (switch for b in own.all_bindings() for switch in b.switches):
            setattr(module, attribute, on if calls else off)


def _forgive(tree: nn.Module, keys: Any) -> None:
    """Forget missing adapter keys when the loaded state dict held none at all."""
    own = [key for key in keys.missing_keys if key.startswith("mmpeft.") or ".mmpeft." in key]
    if len(own) == len(tree.state_dict()):
        keys.missing_keys[:] = [key for key in keys.missing_keys if key not in own]
