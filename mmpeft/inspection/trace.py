"""A trace of one forward pass: which modules were called in what order, what went in and what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmpeft.anatomies.anatomy import own_modules
from mmpeft.anatomies.hosts import carried_by, plain_class
from mmpeft.injection.graft import graft

Forward = Callable[..., Any]
Result = TypeVar("Result")


@dataclass(eq=False)
class TracedCall:
    """One call of a module: its first argument, its result, its place in time, and whether it drew random numbers.

    Within that of a module with active edits lies an ``inner`` one: its own forward, in front of its output edits.
    """

    path: str
    module: nn.Module
    parent: TracedCall | None
    start: int
    entered: Any
    end: int = 0
    left: Any = None
    random: bool = False
    inner: bool = False


def trace(model: nn.Module, run: Callable[[], Result]) -> tuple[list[TracedCall], Result]:
    """Return every call of a module of ``model`` (adapters left out) while ``run`` runs, and its result."""
    calls: list[TracedCall] = []
    running: list[TracedCall] = []
    clock = count()

    def watched(path: str, module: nn.Module, forward: Forward, inner: bool = False) -> Forward:
        def watch(*args: Any, **kwargs: Any) -> Any:
            entered = args[1] if inner else first(args, kwargs)
            call = TracedCall(path, module, running[-1] if running else None, next(clock), entered, inner=inner)
            calls.append(call)
            running.append(call)
            before = _random_state()
            try:
                call.left = forward(*args, **kwargs)
            finally:
                running.pop()
            call.end, call.random = next(clock), any(map(_differ, before, _random_state()))
            return call.left

        return watch

    modules = list(own_modules(model))
    inner = {m: watched(path, m, inside, inner=True) for path, m in modules if (inside := inner_forward(m)) is not None}
    with overridden({m: watched(path, m, m.forward) for path, m in modules}), inner_forwards(inner):
        result = run()
    return calls, result


@contextmanager
def overridden(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Let modules run these forwards inside the block, and their own ones again after it."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, earlier in before.items():
            if earlier is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = earlier


def inner_forward(module: nn.Module) -> Forward | None:
    """Return what a module with active edits runs itself, ``f(module, *args)``; None without, or where it is fused."""
    carried = carried_by(module)
    if carried is None or not carried.calls:
        return None
    cls: type[nn.Module] = plain_class(module)
    forward = carried.inner or cls.forward
    return None if forward is nn.Linear.forward else forward


@contextmanager
def inner_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Let modules with active edits compute with these inner forwards inside the block."""
    grafts = {graft(module): forward for module, forward in forwards.items()}
    before = {carried: carried.stand_in for carried in grafts}
    try:
        for carried, forward in grafts.items():
            carried.stand_in = forward
        yield
    finally:
        for carried, stand_in in before.items():
            carried.stand_in = stand_in


def first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the first argument of a call, by position or by name."""
    return args[0] if args else next(iter(kwargs.values()), None)


def with_first(value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call with another first one."""
    if args:
        return (value, *args[1:]), kwargs
    return (), {**kwargs, next(iter(kwargs)): value}


def _random_state() -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else states


def _differ(left: Tensor, right: Tensor) -> bool:
    return not torch.equal(left, right)
