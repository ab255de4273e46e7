"""What one layer hands to another within a forward pass."""

from __future__ import annotations

from typing import Any


class Passed:
    """What one layer hands to the next in a forward pass; a copy of the model starts without it.

    It stays until the next pass: a checkpointed block that is computed again needs it again.
    """

    def __init__(self) -> None:
        self.value: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Passed:
        return Passed()

    def __reduce__(self) -> tuple[type[Passed], tuple[()]]:
        return Passed, ()
