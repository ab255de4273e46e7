"""Regular expressions of a stranger's configuration, matched against paths of modules in bounded time.

Python's ``re`` tries alternatives one after the other, which an expression such as ``((a|.)+)+!`` turns into years.
Here all places in a path that an expression can have come to are followed at once, as the bits of one integer
(Thompson 1968; Myers 1999). What that can't do (groups referred to, atomic groups) is refused, and so is what takes
more than ``STEPS``. The syntax is read by ``re``'s own parser: ``re._parser`` has no public name since ``sre_parse``
was deprecated in Python 3.11; a test compares the matches with those of ``re``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from mmpeft.kernels.private_names import parsed_expression

STEPS = 5_000_000
"""Of all matches with the expressions of one configuration: some seconds; a usual one takes 1 to 25 a path."""
LONGEST = 100_000
"""Characters of an expression: 1,000 paths in full."""
DEEPEST = 50
"""Groups in one another."""
Test = Callable[[str], bool]


class Budget:
    """The steps that the expressions of one configuration may still take together."""

    def __init__(self) -> None:
        self.left = STEPS

    def spend(self, steps: int = 1) -> None:
        """Count steps; too many are a ValueError."""
        self.left -= steps
        if self.left < 0:
            raise ValueError(f"its regular expressions take more than {STEPS:,} steps on this model's modules")


class Path:
    """A path whose places, 0 to its length, are the bits of an integer."""

    def __init__(self, text: str) -> None:
        self.text, self.places = text, (1 << (len(text) + 1)) - 1
        self._letters: dict[str, int] = {}
        for position, letter in enumerate(text):
            self._letters[letter] = self._letters.get(letter, 0) | 1 << position
        self._masks: dict[Test, int] = {}

    def mask(self, test: Test) -> int:
        """Return the places whose letter passes a test."""
        if test not in self._masks:
            self._masks[test] = sum(places for letter, places in self._letters.items() if test(letter))
        return self._masks[test]

    def word_edges(self) -> int:
        """Return the places between a letter of a word and something else."""
        inside = self.mask(is_word)
        return inside ^ (inside << 1)


Node = Callable[[Path, int, Budget], int]
"""From the places where a part of an expression starts to those where it can end."""
_path = lru_cache(64)(Path)


class PathPattern:
    """An expression that was read; one that isn't one, or can't be matched in bounded time, is a ValueError."""

    def __init__(self, expression: str, budget: Budget) -> None:
        if len(expression) > LONGEST:
            raise ValueError(f"a regular expression of {len(expression):,} characters, more than {LONGEST:,}")
        try:
            parsed = parsed_expression(expression)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{expression[:200]!r} is no regular expression: {error}") from None
        self.budget, self._node = budget, _sequence(parsed, bool(parsed.state.flags & re.IGNORECASE), DEEPEST)

    def ends(self, text: str) -> int:
        """Return where matches that begin at the start of a text can end, as bits."""
        return self._node(_path(text), 1, self.budget)

    def match(self, text: str) -> bool:
        """Whether the beginning of a text matches, as with ``re.match``."""
        return self.ends(text) != 0

    def fullmatch(self, text: str) -> bool:
        """Whether a whole text matches."""
        return bool(self.ends(text) >> len(text))


class FirstMatch:
    """The keys of a dictionary that are expressions for the ends of paths: ``rank_pattern`` and ``alpha_pattern``."""

    def __init__(self, keys: Iterable[str], budget: Budget) -> None:
        self._known: dict[str, str | None] = {}
        self._budget = budget
        self._patterns = [(key, _last_word(key), PathPattern(rf"(.*\.)?({key})$", budget)) for key in keys]

    def key(self, path: str) -> str | None:
        """Return the first key that matches a path."""
        if path not in self._known:
            self._budget.spend(len(self._patterns))
            fitting = (key for key, end, pattern in self._patterns if path.endswith(end) and pattern.match(path))
            self._known[path] = next(fitting, None)
        return self._known[path]


def _last_word(key: str) -> str:
    """Return what every match of a plain path ends with, so that most paths are told apart without matching."""
    return key.rpartition(".")[2] if re.fullmatch(r"[\w.]*", key) else ""


def is_word(letter: str) -> bool:
    """Whether a letter belongs to a word."""
    return letter.isalnum() or letter == "_"


def _sequence(items: Iterable[tuple[Any, Any]], ignore_case: bool, depth: int) -> Node:
    if depth == 0:
        raise ValueError(f"a regular expression with more than {DEEPEST} groups in one another")
    nodes = [_node(str(operation), value, ignore_case, depth) for operation, value in items]

    def run(path: Path, places: int, budget: Budget) -> int:
        budget.spend()
        for node in nodes:
            if not places:
                break
            places = node(path, places, budget)
        return places

    return run


def _node(operation: str, value: Any, ignore_case: bool, depth: int) -> Node:
    if (test := _test(operation, value, ignore_case)) is not None:
        return _letter(test)
    if operation == "BRANCH":
        return _branch([_sequence(items, ignore_case, depth - 1) for items in value[1]])
    if operation == "SUBPATTERN":
        _, added, removed, items = value
        return _sequence(items, (ignore_case or bool(added & re.I)) and not removed & re.I, depth - 1)
    if operation in ("MAX_REPEAT", "MIN_REPEAT"):
        least, most, items = value
        return _repeat(_sequence(items, ignore_case, depth - 1), int(least), int(most), _single(items, ignore_case))
    if operation == "AT":
        return _at(str(value))
    if operation in ("ASSERT", "ASSERT_NOT"):
        direction, items = value
        back = items.getwidth()[0] if direction < 0 else None
        return _look(_sequence(items, ignore_case, depth - 1), operation == "ASSERT", back)
    raise ValueError(f"a regular expression with {operation.lower()}, which can't be matched in bounded time")


def _letter(test: Test) -> Node:
    return lambda path, places, budget: (places & path.mask(test)) << 1


def _branch(nodes: Sequence[Node]) -> Node:
    def run(path: Path, places: int, budget: Budget) -> int:
        ends = 0
        for node in nodes:
            ends |= node(path, places, budget)
        return ends

    return run


def _repeat(node: Node, least: int, most: int, letter: Test | None) -> Node:
    """Return a part that is there several times; after as many times as the path is long nothing new comes."""

    def run(path: Path, places: int, budget: Budget) -> int:
        for _ in range(min(least, len(path.text) + 1)):
            budget.spend()
            places = node(path, places, budget)
        if letter is not None and most > len(path.text):
            mask = path.mask(letter)  # adding carries a bit through the whole run of letters above it
            return (((places & mask) + mask) ^ mask | places) & path.places
        ends = new = places
        for _ in range(min(most - least, len(path.text) + 1)):
            budget.spend()
            new = node(path, new, budget) & ~ends
            if not new:
                break
            ends |= new
        return ends

    return run


def _single(items: Any, ignore_case: bool) -> Test | None:
    return _test(str(items[0][0]), items[0][1], ignore_case) if len(items) == 1 else None


def _at(name: str) -> Node:
    def run(path: Path, places: int, budget: Budget) -> int:
        if name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return places & 1
        if name in ("AT_END", "AT_END_STRING"):
            return places & 1 << len(path.text)
        edges = path.word_edges()
        return places & (edges if name == "AT_BOUNDARY" else ~edges)

    return run


def _look(node: Node, wanted: bool, back: int | None) -> Node:
    """Keep the places from which a part matches, or doesn't; it lies ``back`` letters before them, or ahead."""

    def run(path: Path, places: int, budget: Budget) -> int:
        kept = 0
        for i in range(len(path.text) + 1):
            if places >> i & 1:
                start = i - (back or 0)
                ends = node(path, 1 << start, budget) if start >= 0 else 0
                ends = ends if back is None else ends & 1 << i
                kept |= (bool(ends) is wanted) << i
        return kept

    return run


@lru_cache
def _literal(character: str, wanted: bool) -> Test:
    return lambda letter: (letter == character) is wanted


@lru_cache
def _category(name: str) -> Test:
    kind = {"DIGIT": str.isdecimal, "SPACE": str.isspace, "WORD": is_word}[name.rpartition("_")[2]]
    return (lambda letter: not kind(letter)) if "_NOT_" in name else kind


def _test(operation: str, value: Any, ignore_case: bool) -> Test | None:
    """Return whether a letter is one that an operation stands for; None where it stands for something else."""
    if operation in ("LITERAL", "NOT_LITERAL"):
        plain = _literal(chr(value), operation == "LITERAL")
    elif operation == "ANY":
        return _literal("\n", False)
    elif operation == "IN":
        plain = _one_of(value)
    else:
        return None
    if not ignore_case:
        return plain
    return lambda letter: plain(letter.lower()) or plain(letter.upper())


def _one_of(items: Sequence[tuple[Any, Any]]) -> Test:
    kinds = [_category(str(value)) for operation, value in items if str(operation) == "CATEGORY"]
    ranges = [value for operation, value in items if str(operation) == "RANGE"]
    ranges += [(value, value) for operation, value in items if str(operation) == "LITERAL"]
    wanted = str(items[0][0]) != "NEGATE"

    def test(letter: str) -> bool:
        inside = any(low <= ord(letter) <= high for low, high in ranges) or any(kind(letter) for kind in kinds)
        return inside is wanted

    return test
