"""The first pass of an adapted model: hosts that it never calls, though it runs the module around them, are named.

A library may read a layer's weight and compute with it elsewhere. An edit of that layer does nothing then, while
merging it would change the model.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.anatomies.hosts import PLAIN
from mmpeft.edits.base import Binding, Point
from mmpeft.injection.containers import CONTAINERS
from mmpeft.injection.graft import graft, ungraft
from mmpeft.injection.tree import Tree

WEIGHTS = (Point.OUTPUT, Point.PROJECTION)
"""Where an edit of a weight does nothing unless its host is called."""
EXPERT = re.compile(r"expert|moe", re.IGNORECASE)
"""Paths of modules that serve some tokens only, and may have none in a pass."""


def watch_first_pass(model: nn.Module, tree: Tree) -> None:
    """Have the next pass of a model watched, where its class decides on its forward."""
    if "forward" not in model.__dict__:
        graft(model).first = FirstPass(tree)


class FirstPass:
    """Runs a pass of a model with active adapters while watching it, then lets the model be."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    def __call__(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output; warn of active hosts that were not called, and of towers that did not run."""
        carried, forward = graft(model), type(model).forward
        carried.first = None
        bindings = [] if self.tree.merged else [*_active(self.tree)]
        traced = torch.jit.is_tracing() or any(isinstance(value, torch.fx.Proxy) for value in (*args, *kwargs.values()))
        if not bindings or traced or "forward" in model.__dict__:  # a tracer's pass is not the model's own
            try:
                return forward(model, *args, **kwargs)
            finally:
                carried.first = self
        around = _around(model, bindings)
        entered = set[int]()
        with ExitStack() as hooks:
            for module in {id(module): module for module in around.values()}.values():
                hook = module.register_forward_pre_hook(lambda module, _: entered.add(id(module)))
                hooks.callback(hook.remove)
            output = forward(model, *args, **kwargs)
        for binding in bindings:
            host = graft(binding.host)
            host.passed_over = not host.called and id(around.get(id(binding.host))) in entered
        _warn(bindings)
        if not carried.needed and PLAIN in type(model).__dict__:  # sharding makes a class of its own of the grafted one
            ungraft(model)
        return output


def check_called(tree: Tree) -> None:
    """Raise a ValueError for active hosts that were never called though the module around them was; not for experts."""
    hosts = ((binding.site.host_path, graft(binding.host)) for binding in _active(tree) if binding.point in WEIGHTS)
    never = [path for path, host in hosts if host.passed_over and not host.called and not EXPERT.search(path)]
    if never:
        raise ValueError(
            f"merge: {_listed(never)} never called, though the modules around them were: their edits did nothing, and "
            "merged they would change the model. Leave them out of the adapter, or run the model so that it calls them"
        )


def _active(tree: Tree) -> Iterator[Binding]:
    yield from (binding for name in tree.active for binding in tree.adapters[name].bindings)


def _around(model: nn.Module, bindings: Iterable[Binding]) -> Mapping[int, nn.Module]:
    """Return the module that is to call each host: the one around it, containers left out."""
    hosts = {id(binding.host) for binding in bindings if binding.point in WEIGHTS}
    modules = dict(own_modules(model))
    around = {}
    for path, module in modules.items():
        if id(module) in hosts and path:
            parents = (path.rsplit(".", up)[0] if path.count(".") >= up else "" for up in range(1, path.count(".") + 2))
            around[id(module)] = next((m for at in parents if not isinstance(m := modules[at], CONTAINERS)), model)
    return around


def _warn(bindings: Iterable[Binding]) -> None:
    hosts = [(binding.site, graft(binding.host)) for binding in bindings if binding.point in WEIGHTS]
    over = [*dict.fromkeys(site.host_path for site, host in hosts if host.passed_over)]
    if over:
        warnings.warn(
            f"{len(over)} adapted layers: {_listed(over)} not called in the model's first pass, though the modules "
            "around them were: their edits did nothing. Either the model skipped them (an expert without tokens), or "
            "it reads their weights itself, and they can't be adapted",
            stacklevel=4,
        )
    ran = {site.tower for site, host in hosts if host.called or host.passed_over}
    idle = [*dict.fromkeys(site.tower for site, _ in hosts if site.tower not in ran)]
    if idle:
        warnings.warn(
            f"no adapted layer of tower {' or '.join(map(repr, idle))} ran in the model's first pass", stacklevel=4
        )


def _listed(paths: list[str]) -> str:
    shown = [*dict.fromkeys(paths)][:4]
    return f"{', '.join(shown)}{' ...' if len({*paths}) > 4 else ''} {'was' if len({*paths}) == 1 else 'were'}"
