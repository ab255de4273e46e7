"""Sums in two steps, with the steps written down before the answer (chain of thought, Wei et al., 2022)."""

from __future__ import annotations

from random import Random

from mmpeft.data.language.tiny.sampling import Row, draw, turn
from mmpeft.data.language.tiny.words import NUMBERS

THINK, ANSWER = "<|think|>", "</think>"
"""Where the reasoning begins and ends: tokens of `tiny/llm`."""
PHRASINGS = (
    "What is {sum}?", "How much is {sum}?", "Please work out {sum}.", "{sum} is what?", "Calculate {sum}.",
)  # fmt: skip
HELD_OUT = ("Give me the result of {sum}.", "Tell me what {sum} is.", "I would like to know {sum}.")
Steps = tuple[int, int, int]
"""The first number, and what is added to it twice; less than 0 is taken away."""


def make_thought(split: str, random: Random) -> Row:
    """Return a conversation with a reasoning span: ``<|think|> ... </think> seven``; ``answer`` is what follows it."""
    steps = draw(_make, str, split, random)
    return _row(steps, random.choice(HELD_OUT if split == "test" else PHRASINGS))


def make_answer(split: str, random: Random) -> Row:
    """Return such a conversation without the reasoning."""
    row = make_thought(split, random)
    return row | {"messages": [row["messages"][0], turn("assistant", row["answer"])]}


def answer_of(text: str) -> str:
    """Return what a reply says after its reasoning; all of it if there is none."""
    return text.rpartition(ANSWER)[2].strip()


def _make(random: Random) -> Steps:
    first, second = random.randint(0, 10), random.randint(-10, 10)
    middle = first + second
    third = random.randint(-10, 10)
    return (first, second, third) if 0 <= middle <= 20 and 0 <= middle + third <= 20 else _make(random)


def _row(steps: Steps, phrasing: str) -> Row:
    first, second, third = steps
    middle, last = first + second, sum(steps)
    asked = phrasing.format(sum=f"{NUMBERS[first]} {_with(second)} {_with(third)}")
    one = f"{NUMBERS[first]} {_with(second)} is {NUMBERS[middle]}"
    two = f"{NUMBERS[middle]} {_with(third)} is {NUMBERS[last]}"
    reply = f"{THINK} {one}. {two}. {ANSWER} {NUMBERS[last]}"
    messages = [turn("user", asked[0].upper() + asked[1:]), turn("assistant", reply)]
    return {"messages": messages, "task": "two steps", "answer": NUMBERS[last]}


def _with(number: int) -> str:
    return f"{'plus' if number >= 0 else 'minus'} {NUMBERS[abs(number)]}"
