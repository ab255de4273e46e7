"""What was set for a model from now on, and can be set for a while only."""

from __future__ import annotations

from collections.abc import Callable


class Chosen:
    """As a context manager it puts back in the end what was before."""

    def __init__(self, undo: Callable[[], object]) -> None:
        self.undo = undo

    def __enter__(self) -> Chosen:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()
