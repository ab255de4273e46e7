"""What `use_attention` and `use_memory` return: a setting for everybody, or within a ``with`` for one context alone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import nn

from mmpeft.anatomies.hosts import carried_by
from mmpeft.injection.graft import Graft, graft, ungraft
from mmpeft.kernels.scoped import Scoped, within

_lock = threading.RLock()
_setters: weakref.WeakKeyDictionary[Scoped[Any], weakref.ref[Setting]] = weakref.WeakKeyDictionary()
"""Which setting the default of each value came from."""


class Setting(AbstractContextManager["Setting"]):
    """Gives values to hosts, by the host; as a context manager, ``with use_memory(...):``, in this context alone.

    Until it is entered it holds for everybody: a call alone has done its work. Entering takes that back, even if
    another setting was made meanwhile.
    """

    def __init__(self, hosts: Mapping[nn.Module, tuple[str, Any]]) -> None:
        self.hosts, self.entered, self.context = dict(hosts), False, ExitStack()
        with _lock:
            grafts = {graft(host): named for host, named in self.hosts.items()}
            self.values = {getattr(carried, name): value for carried, (name, value) in grafts.items()}
            self.before = {scoped: (_setters.get(scoped), scoped.default) for scoped in self.values}
            for scoped, value in self.values.items():
                scoped.default = value
                _setters[scoped] = weakref.ref(self)
            self._settle()

    def __enter__(self) -> Setting:
        with _lock:
            self.entered = True
            for scoped in self.values:
                if (setter := _setters.get(scoped)) is not None and setter() is self:
                    self._take_back(scoped)
            for carried in self._grafts():
                carried.borrowed += 1
            self._settle()
        self.context.enter_context(within(self.values))
        return self

    def __exit__(self, *error: object) -> None:
        self.context.close()
        with _lock:
            for carried in self._grafts():
                carried.borrowed -= 1
            self._settle()

    def _take_back(self, scoped: Scoped[Any]) -> None:
        """Give a value the default of before this setting and all that are entered."""
        setter, value = self.before[scoped]
        while setter is not None and (earlier := setter()) is not None and earlier.entered:
            setter, value = earlier.before[scoped]
        scoped.default = value
        if setter is None:
            del _setters[scoped]
        else:
            _setters[scoped] = setter

    def _grafts(self) -> list[Graft]:
        return [graft(host) for host in self.hosts if carried_by(host)]

    def _settle(self) -> None:
        """Let the hosts take their defaults; those that carry nothing any more get their own class back."""
        for carried in self._grafts():
            carried.default = None
        for host in self.hosts:
            if carried_by(host) and not graft(host).needed:
                ungraft(host)
