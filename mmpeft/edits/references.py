"""What an edit holds besides weights of its own: other edits, and what a user gives it for a while."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from mmpeft.kernels.scoped import Scoped

T = TypeVar("T")


class Borrowed(Generic[T]):
    """Another edit (or several, or None) that an edit reads, without its becoming a child of it.

    torch makes every module that is set as an attribute a child: its weights would be saved, counted and trained twice.
    What is borrowed stays a child of the adapter alone. A copy of the adapter borrows from the copy.
    """

    def __init__(self, value: T) -> None:
        self.value = value


class Condition(Scoped[Any]):
    """What an edit is given besides the model's own input, for as long as a context lasts; copies start without."""

    def __init__(self) -> None:
        super().__init__(None)

    def needed(self, what: str, name: str) -> Any:
        """Return the value; without one raise a ValueError that says how ``what``, here ``name``, is given."""
        if self.value is None:
            raise ValueError(f"{what}: call the model within adapters.given({{name: {name}}})")
        return self.value

    def __deepcopy__(self, memo: dict[int, Any]) -> Condition:
        return Condition()

    def __reduce__(self) -> tuple[type[Condition], tuple[()]]:
        return Condition, ()
