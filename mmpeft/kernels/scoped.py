"""Values that all threads and tasks share, and what holds in one of them alone.

A `Scoped` value has a default for everybody. ``with within({scoped: value}):`` replaces it for what runs inside, in
this thread or asynchronous task and in tasks made there, and for nobody else. What is handed on within a pass
(`Passed`) is kept per thread. A gradient checkpoint computes its block again in the backward pass, perhaps in a thread
of torch's; `keep_for_recomputation` lets it see what the first computation saw.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from mmpeft.kernels.private_names import saved_tensor_hooks

T = TypeVar("T")
Replacements = Mapping["Scoped[Any]", Any]

_replaced: ContextVar[Replacements | None] = ContextVar("mmpeft.replaced", default=None)
"""What `Scoped.value` reads: all replacements of this context as one; None where there are none."""
_entered: ContextVar[tuple[Replacements, ...]] = ContextVar("mmpeft.entered", default=())
"""The same one by one, in the order of entering, so that they may be left in any order."""
_thread = threading.local()
_passing: ContextVar[WeakKeyDictionary[Any, Any] | None] = ContextVar("mmpeft.passing", default=None)
"""What the pass that is computed again just now has handed on."""


class Scoped(Generic[T]):
    """A value with a ``default`` for everybody, which a context may replace for itself.

    The default of a copy is what the value is where it is copied.
    """

    def __init__(self, default: T) -> None:
        self.default = default

    @property
    def value(self) -> T:
        """The value here and now."""
        replaced = _replaced.get()
        if replaced is None:
            return self.default
        value: T = replaced.get(self, self.default)
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "default": self.value}


def replacements() -> Replacements | None:
    """Return the values that are replaced here and now, None for none: for readers of many at once."""
    return _replaced.get()


@contextmanager
def within(replacements: Replacements) -> Iterator[None]:
    """Replace values in this context; contexts within contexts may be left in any order."""
    chosen = dict(replacements)
    _enter((*_entered.get(), chosen))
    try:
        yield
    finally:
        _enter(tuple(each for each in _entered.get() if each is not chosen))


def _enter(entered: tuple[Replacements, ...]) -> None:
    _entered.set(entered)
    merged = {scoped: value for each in entered for scoped, value in each.items()}
    _replaced.set(merged or None)


def passing() -> WeakKeyDictionary[Any, Any]:
    """Return what this thread's pass hands on from layer to layer, by who hands it on."""
    again = _passing.get()
    if again is not None:
        return again
    if not hasattr(_thread, "passing"):
        _thread.passing = WeakKeyDictionary()
    values: WeakKeyDictionary[Any, Any] = _thread.passing
    return values


def keep_for_recomputation() -> None:
    """Where a gradient checkpoint will compute this again, let it do so with the values of here and now.

    torch gives no way to say so from within a checkpointed function. The innermost hooks on saved tensors are the
    checkpoint's, and hold what it will call (private names of torch 2.7 to 2.15: without them nothing is kept, and a
    test fails).
    """
    frame = _checkpoint()
    if frame is None or isinstance(frame.recompute_fn, _Recomputation):
        return
    frame.recompute_fn = _Recomputation(frame.recompute_fn, _entered.get(), passing())


class _Recomputation(partial[Any]):
    """A function that runs with the replacements, and with what was handed on, of another time and thread."""

    def __new__(cls, function: Callable[..., Any], entered: tuple[Replacements, ...], passed: Any) -> _Recomputation:
        return super().__new__(cls, _again, function, entered, passed)


def _again(function: Callable[..., Any], entered: tuple[Replacements, ...], passed: Any, *args: Any) -> Any:
    before, passing_before = _entered.get(), _passing.get()
    _enter(entered)
    _passing.set(passed)
    try:
        return function(*args)
    finally:
        _enter(before)
        _passing.set(passing_before)


def _checkpoint() -> Any:
    """Return the frame of the gradient checkpoint that runs just now for the first time; None for none."""
    hooks = saved_tensor_hooks()
    if hooks is None or hooks[0].__module__ != "torch.utils.checkpoint":
        return None
    cells = (cell.cell_contents for cell in hooks[0].__closure__ or ())
    return next((content for content in cells if hasattr(content, "recompute_fn")), None)
