"""Routing: the calls of many adapters at one host, each for its own samples, as few calls of stacked weights."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import fields

from mmpeft.edits.base import Call, Point
from mmpeft.edits.routes import RoutingTable
from mmpeft.edits.together import Stacked, Stacks, Together

POINTS = (Point.INPUT, Point.OUTPUT, Point.PROJECTED, Point.PROJECTION, Point.ATTENTION)
"""Where calls can be one: the others replace parameters."""


def together(calls: Iterable[tuple[str, Call]], table: RoutingTable, everyone: int) -> list[Call]:
    """Return the calls of one host, given by adapter and in the order of each, with as many as possible in one.

    ``everyone`` is the number of adapters that serve samples.

    Adapters that serve different samples don't see each other's: only the order inside of each matters.
    """
    points: dict[str, dict[str, list[tuple[Hashable, Call]]]] = {}
    for name, call in calls:
        points.setdefault(call.binding.point, {}).setdefault(name, []).append((_kind(call), call))
    return [call for queues in points.values() for call in _merged(queues, table, everyone)]


def _merged(queues: dict[str, list[tuple[Hashable, Call]]], table: RoutingTable, everyone: int) -> Iterable[Call]:
    while queues:
        first, ((kind, call), *_) = next(iter(queues.items()))
        names = [first] if kind is None else [name for name, waiting in queues.items() if waiting[0][0] == kind]
        if call.binding.edit.count and len(names) < everyone:
            names, kind = [first], None
        edits = tuple(edit for name in names if isinstance(edit := queues[name].pop(0)[1].binding.edit, Stacks))
        if kind is None:
            yield call
        else:
            common = {field.name: getattr(call, field.name) for field in fields(Call)}
            yield Together(**common, names=tuple(names), table=table, weights=Stacked(edits))
        for name in [name for name in names if not queues[name]]:
            del queues[name]


def _kind(call: Call) -> Hashable:
    """Return what calls that can be one have in common; None: this can't be part of one."""
    binding, edit = call.binding, call.binding.edit
    if not isinstance(edit, Stacks) or edit.input_gate is not None or binding.point not in POINTS:
        return None
    alike = edit.alike()
    if alike is None:
        return None
    return type(edit), binding.index, repr(binding.rows), id(binding.tap), call.offset, alike
