"""The schedule of a host: its active edits, each at its point of the host's forward, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mmpeft.anatomies.hosts import Tap, graft_of
from mmpeft.edits.base import Call, Point

Forward = Callable[..., Any]


class Schedule:
    """Made from a host's calls, and never changed: another choice of adapters is another schedule.

    ``taps`` are what modules elsewhere saw, for edits here that read it; ``tapped`` says that edits elsewhere read what
    this host sees. ``carry`` is the forward that an edit makes the host run instead of its own.
    """

    def __init__(self, calls: Sequence[Call] = (), *, tapped: bool = False) -> None:
        def at(point: Point) -> tuple[Call, ...]:
            return tuple(call for call in calls if call.binding.point == point)

        self.calls, self.tapped = tuple(calls), tapped
        self.inputs, self.outputs, self.parameters = at(Point.INPUT), at(Point.OUTPUT), at(Point.PARAMETERS)
        self.projected, self.projections = at(Point.PROJECTED), at(Point.PROJECTION)
        self.attentions, self.features = at(Point.ATTENTION), at(Point.FEATURES)
        self.carry: Forward | None = next((call.binding.carry for call in at(Point.CARRIER)), None)
        self.taps = tuple(_taps([call.binding.tap for call in (*self.inputs, *self.outputs)]))


def _taps(modules: Sequence[nn.Module | None]) -> list[Tap]:
    return [graft_of(module).tap for module in {id(own): own for own in modules if own is not None}.values()]


EMPTY = Schedule()
"""That of a host without active edits."""
