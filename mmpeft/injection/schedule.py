"""The schedule of a host: its active edits, each at its point of the host's forward, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from mmpeft.anatomies.hosts import Tap, graft_of
from mmpeft.edits.base import Call, Point, UpdatesWeight
from mmpeft.edits.together import Together
from mmpeft.kernels.rows import Interleaved

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
        self.brief = self._brief()
        self.taps = tuple(_taps([call.binding.tap for call in (*self.inputs, *self.outputs)]))

    def _brief(self) -> Call | None:
        """Return the only call, where it is a plain update of the host's weight: what decoding is fast for."""
        if len(self.calls) != 1 or len(self.outputs) != 1 or self.tapped:
            return None
        call, edit, rows = self.calls[0], self.calls[0].binding.edit, self.calls[0].binding.rows
        other = call.route is not None or isinstance(call, Together) or call.binding.tap is not None
        if other or isinstance(rows, Interleaved) or edit.input_gate is not None or not isinstance(edit, UpdatesWeight):
            return None
        return call


def _taps(modules: Sequence[nn.Module | None]) -> list[Tap]:
    return [
        graft_of(module).tap for module in {id(module): module for module in modules if module is not None}.values()
    ]


EMPTY = Schedule()
"""That of a host without active edits."""
