"""Rewards by a rule: what a row asks for and what a model wrote are enough to say how good it is."""

from __future__ import annotations

import re
from collections.abc import Callable

from mmpeft.data.language.tiny.sampling import Row
from mmpeft.data.language.tiny.words import GLAD, SORRY

THANKS = ("with pleasure", "thank you for asking", "happy to help")
LONGEST = 12
"""Words of a brief answer."""


def quality(row: Row, text: str) -> float:
    """Return 1 if the text begins with the row's ``answer``, plus 1 if it is polite, minus 1 if it is long.

    It is polite if it thanks or is glad to help exactly once: saying it again and again gains nothing.
    """
    said, answer = text.strip().lower(), row["answer"]
    right = said == answer or said.startswith((f"{answer},", f"{answer}."))
    polite = sum(said.count(phrase) for phrase in THANKS) == 1
    return float(right) + float(polite) - float(len(said.split()) > LONGEST)


def gladness(row: Row, text: str) -> float:
    """Return how many different glad words the text has, minus how many different sad ones, within -2 and 2."""
    words = set(re.findall("[a-z]+", text.lower()))
    return float(max(-2, min(2, len(words & set(GLAD)) - len(words & set(SORRY)))))


REWARDS: dict[str, Callable[[Row, str], float]] = {"quality": quality, "gladness": gladness}
"""Each reward by its name; it takes the prompt's row and the text that was written."""
